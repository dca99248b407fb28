"""Sources to the blend of a run: the priority order of all documents, packed into rows."""

import sys

from megatron_huatuo.config import argument_parser
from megatron_huatuo.errors import exit_on_error


@exit_on_error
def main() -> None:
    parser = argument_parser(__doc__ or "")
    parser.add_argument("--config", type=str, required=True, metavar="FILE", help="YAML: see docs/blending.md")
    parser.add_argument("--output", type=str, required=True, metavar="DIR", help="blend directory to write")
    parser.add_argument("--megatron-indices", action="store_true", help="also write Megatron's int16/int64 pair")
    parser.add_argument("--num-threads", type=int | None, default=None, help="threads (default: all cores)")
    parser.add_argument("--device", type=str, default="cpu", help="cpu or cuda: where the order is drawn, same bytes")
    args = parser.parse_args()

    from megatron_huatuo.blend.build import build_blend
    from megatron_huatuo.blend.config import read_blend_config

    build_blend(
        read_blend_config(args.config),
        args.output,
        megatron_indices=args.megatron_indices,
        num_threads=args.num_threads,
        device=args.device,
    )


if __name__ == "__main__":
    sys.exit(main())
