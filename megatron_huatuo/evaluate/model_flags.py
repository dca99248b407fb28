"""Flags of the commands of `tools/evaluate.py` that ask a model: which one, what it is asked, and how."""

from __future__ import annotations

from dataclasses import replace

from jsonargparse import ArgumentParser, Namespace

from megatron_huatuo.config import add_dashed_fields, argument_parser, from_dashed_fields
from megatron_huatuo.evaluate.generate import EndpointOptions, GenerationSettings, ModelEndpoint, refuse_ignored
from megatron_huatuo.llm.endpoint_settings import PatienceSettings


def asking_parser(description: str, files: str) -> ArgumentParser:
    """A parser with all of them. files: kinds of question files."""
    asking = argument_parser(description)
    asking.add_argument("--model", type=str, required=True, metavar="HF_DIR", help="directory, or name at --base-url")
    asking.add_argument("--base-url", type=str, metavar="URL", help="OpenAI-compatible endpoint, up to /v1")
    asking.add_argument("--questions", type=str, nargs="+", required=True, metavar="FILE", help=files)
    asking.add_argument("--output", type=str, required=True, metavar="DIR", help="the same one again continues")
    asking.add_argument("--trust-remote-code", action="store_true", help="run Python code of the directory")
    for section in (GenerationSettings, EndpointOptions, PatienceSettings):
        add_dashed_fields(asking, section)
    return asking


def model_of(args: Namespace, generation: GenerationSettings) -> str | ModelEndpoint:
    """The directory or the endpoint; settings of the other one are refused. Raises: ConfigError naming the setting."""
    options, patience = from_dashed_fields(EndpointOptions, args), from_dashed_fields(PatienceSettings, args)
    if args.base_url is None:
        refuse_ignored([options, patience], "without --base-url")
        return str(args.model)
    own = {name: getattr(GenerationSettings, name) for name in ("max_new_tokens", "temperature")}
    refuse_ignored([replace(generation, **own)], "with --base-url")
    return ModelEndpoint(args.base_url, args.model, options, patience)
