#!/usr/bin/env python3
"""Hugging Face directory <-> distributed checkpoint, and the proof that the two are equal."""

import sys

from jsonargparse import ArgumentParser

from megatron_huatuo.config import add_dashed_fields, argument_parser, from_dashed_fields
from megatron_huatuo.convert.card_metadata import CardFacts
from megatron_huatuo.errors import exit_on_error
from megatron_huatuo.log import silence_known_warnings


def _add_card_facts(parser: ArgumentParser) -> None:
    parser.add_argument("--language", nargs="+", default=(), metavar="CODE", help="of the model, such as zh en")
    parser.add_argument("--datasets", nargs="+", default=(), metavar="ORG/NAME", help="trained on, names on the Hub")
    add_dashed_fields(parser, CardFacts, skip=("language", "datasets"))


@exit_on_error
def main() -> None:
    """Parse arguments and convert."""
    silence_known_warnings()
    parser = argument_parser("Convert between Hugging Face directories and checkpoints, and compare them.")
    commands = parser.add_subcommands(dest="command")

    importing = argument_parser("Hugging Face directory -> checkpoint for any TP, PP and DP; runs no remote code.")
    importing.add_argument("--hf", required=True, help="Hugging Face directory (safetensors or .bin)")
    importing.add_argument("--checkpoint", required=True, help="directory to write the checkpoint into")
    importing.add_argument(
        "--ignore-config-key", nargs="+", default=[], metavar="KEY", help="keys of config.json known to be harmless"
    )
    commands.add_subcommand("import", importing, help=importing.description)

    exporting = argument_parser("Checkpoint of any layout -> Hugging Face directory, verified before it is published.")
    exporting.add_argument("--checkpoint", required=True, help="a run, its checkpoints/ or one iteration")
    exporting.add_argument("--hf", required=True, help="directory to write")
    exporting.add_argument("--base-hf", help="published base model, for its tokenizer and generation settings")
    exporting.add_argument(
        "--dtype", choices=["bfloat16", "float16", "float32"], help="default: that of the checkpoint"
    )
    exporting.add_argument("--skip-verification", action="store_true", help="publish without comparing logits")
    exporting.add_argument("--allow-token-mismatch", action="store_true", help="accept other token ids when served")
    exporting.add_argument("--allow-forgetting", action="store_true", help="publish a model that forgot, and say so")
    exporting.add_argument("--llamafy", action="store_true", help="write a Baichuan2-7B as a Llama, no remote code")
    _add_card_facts(exporting)
    commands.add_subcommand("export", exporting, help=exporting.description)

    describing = argument_parser("Write the model card of an export again, with the scores of exams that it has sat.")
    describing.add_argument("--hf", required=True, help="exported directory")
    describing.add_argument("--evaluation", nargs="+", default=[], metavar="DIR", help="outputs of evaluate.py exam")
    _add_card_facts(describing)
    commands.add_subcommand("card", describing, help=describing.description)

    verifying = argument_parser("Compare weights, token ids, logits and greedy continuation.")
    verifying.add_argument("--checkpoint", required=True, help="a run, its checkpoints/ or one iteration")
    verifying.add_argument("--hf", required=True, help="Hugging Face directory")
    verifying.add_argument("--allow-token-mismatch", action="store_true", help="accept other token ids when served")
    commands.add_subcommand("verify", verifying, help=verifying.description)

    averaging = argument_parser("Average the weights of checkpoints of one run, or of a run and its base, in float32.")
    averaging.add_argument("--checkpoints", required=True, nargs="+", metavar="DIR", help="runs or single iterations")
    averaging.add_argument("--weights", type=float, nargs="+", metavar="W", help="one for each; default: equal ones")
    averaging.add_argument("--checkpoint", required=True, help="directory to write the averaged checkpoint into")
    commands.add_subcommand("average", averaging, help=averaging.description)

    arguments = parser.parse_args()
    options = vars(arguments[arguments.command])
    if arguments.command == "average":
        from megatron_huatuo.convert.average import average_checkpoints

        written = average_checkpoints(options["checkpoints"], options["checkpoint"], options["weights"])
        print(f"checkpoint: {written}")
        return
    if arguments.command == "card":
        from megatron_huatuo.convert.model_card import rewrite_card

        rewrite_card(options["hf"], options["evaluation"], from_dashed_fields(CardFacts, arguments["card"]))
        print(f"model card: {options['hf']}/README.md")
        return
    checkpoint, hf = options.pop("checkpoint"), options.pop("hf")
    if arguments.command == "import":
        from megatron_huatuo.convert.import_checkpoint import import_hf

        print(f"checkpoint: {import_hf(hf, checkpoint, ignored_keys=options['ignore_config_key'])}")
        return
    if arguments.command == "export":
        from megatron_huatuo.convert.publish import export_checkpoint

        card = from_dashed_fields(CardFacts, arguments["export"])
        own = {name: value for name, value in options.items() if name not in vars(card)}
        parity = export_checkpoint(checkpoint, hf, **own, card=card)
        print(f"model: {hf}" if parity else f"model: {hf} (not verified)")
    else:
        from megatron_huatuo.convert.verify import verify_export

        parity = verify_export(checkpoint, hf, **options)
    for name, value in parity.to_dict().items() if parity else ():
        print(f"{name}: {value}")


if __name__ == "__main__":
    sys.exit(main())
