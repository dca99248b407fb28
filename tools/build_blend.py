"""Sources to the blend of a run: the priority order of all documents, packed into rows."""

import sys

from megatron_huatuo.blend.blend_settings import BuildOptions, read_blend_config
from megatron_huatuo.config import add_dashed_fields, argument_parser, from_dashed_fields
from megatron_huatuo.errors import ConfigError, exit_on_error


@exit_on_error
def main() -> None:
    parser = argument_parser(__doc__ or "")
    parser.add_argument("--config", type=str | None, default=None, metavar="FILE", help="YAML: see docs/blending.md")
    parser.add_argument("--output", type=str | None, default=None, metavar="DIR", help="blend directory to write")
    parser.add_argument("--megatron-indices", action="store_true", help="also write Megatron's int16/int64 pair")
    add_dashed_fields(parser, BuildOptions, skip=("megatron_indices",))
    parser.add_argument(
        "--replan", type=str | None, default=None, metavar="RUN_DIR", help="keep what this run consumed"
    )
    parser.add_argument(
        "--consumed-rows", type=int | None, default=None, help="rows to keep (default: newest checkpoint)"
    )
    parser.add_argument(
        "--schedule", type=str | None, default=None, metavar="RUN_DIR", help="only draw a run's schedule.png"
    )
    args = parser.parse_args()

    from megatron_huatuo.blend.blend_build import build_blend
    from megatron_huatuo.blend.blend_replan import replan_blend
    from megatron_huatuo.blend.schedule_picture import write_run_schedule

    if args.schedule is not None:
        print(write_run_schedule(args.schedule))
        return
    if args.config is None or args.output is None:
        raise ConfigError("missing flag: need --config FILE and --output DIR (or --schedule RUN_DIR)")
    config = read_blend_config(args.config)
    options = from_dashed_fields(BuildOptions, args)
    if args.replan is not None:
        replan_blend(args.replan, config, args.output, options, consumed_rows=args.consumed_rows)
    elif args.consumed_rows is not None:
        raise ConfigError("--consumed-rows says what to keep of a run: it needs --replan RUN_DIR")
    else:
        build_blend(config, args.output, options)


if __name__ == "__main__":
    sys.exit(main())
