"""``mcit export``: stages 1..K as an adapter, one stage's delta, or merged weights."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mcit.cli.common import combine_arguments, print_json
from mcit.core.errors import ConfigError


def add_parser(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser("export", help="write an adapter or merged weights that plain transformers and peft load")
    parser.add_argument("run", metavar="RUN", help="folder of the run")
    parser.add_argument("--stage", type=int, metavar="K", help="export what stages 1..K learnt")
    combine_arguments(parser, "--combine")
    parser.add_argument(
        "--as",
        dest="kind",
        choices=("adapter", "delta", "merged", "pool", "guard"),
        default="adapter",
        help="adapter: stages 1..K on the original base; delta: stage K alone; merged: full weights; "
        "pool: an adapter each, with router and loader; guard: detector and phrases, with a loader (default: adapter)",
    )
    parser.add_argument("--out", metavar="DIR", help="folder to write (default: exports/<stage>-<kind> in the run)")
    parser.add_argument("--max-rank", type=int, metavar="R", help="shorten the adapter to this rank by SVD")
    parser.add_argument(
        "--push", metavar="REPO", help="also upload it to this model repository (owner/name) of the hub"
    )
    parser.add_argument("--private", action="store_true", help="with --push: a repository that only its owner sees")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(verb="export")


def run(args: argparse.Namespace) -> int:
    """Write, reload, compare, print; with --push upload."""
    from mcit.runs.run import open_existing

    if args.private and not args.push:
        raise ConfigError("goes with --push only", where="--private", fix="give --push owner/name, or leave it out")
    found = open_existing(Path(args.run))
    from mcit.cli.common import combination_of, start_torch

    start_torch()
    from mcit.export.export import export_stage
    from mcit.export.push import check_repository, push

    if args.push:
        check_repository(args.push)
    spec = combination_of(args, found)
    if (args.stage is None) != (spec is not None):
        fix = "give --stage K for stages 1..K, or --combine with --stages"
        raise ConfigError("say what to export, once", where="mcit export", fix=fix)
    stage = max(spec.stages) if spec else args.stage
    out = Path(args.out) if args.out else None
    done = export_stage(found, stage=stage, kind=args.kind, out=out, max_rank=args.max_rank, combine=spec)
    url = None
    if args.push:
        url = push(done.folder, args.push, done.record, private=args.private)
        found.ledger.append("pushed", out=str(done.folder), repository=args.push)
    if args.json:
        pushed = {"pushed": url} if url else {}
        told = {"out": str(done.folder), "made": done.made, "card_outdated": done.outdated}
        print_json({**told, **pushed, **done.record})
        return 0
    record = done.record
    print(f"{record['kind']} of stages {', '.join(record['stages'])}{'' if done.made else ' (was there already)'}")
    if done.outdated:
        print(
            "its card is older than what the run knows by now, such as its scores: remove the folder and export it again"
        )
    if spec:
        print(f"combined by {spec.how}, weights {', '.join(f'{weight:g}' for weight in spec.weights)}")
    print(f"base: {record['base']} (sha256 {record['base_sha256'][:12]}…, {record['base_dtype']})")
    if record.get("truncation_error") is not None:
        print(f"shortened to rank {record['rank']}: relative error {record['truncation_error']:.2e}")
    if record.get("not_in_peft"):
        print(f"peft cannot name {len(record['not_in_peft'])} trained tensors; they are in extra.safetensors")
    if record["kind"] == "guard":
        print(f"reloaded: the detector's probabilities differ by at most {record['difference']:.2e}")
    else:
        print(f"reloaded: logits differ by at most {record['difference']:.2e} (largest {record['largest_logit']:.3g})")
    if record.get("trained_on"):
        print(
            f"trained on {record['trained_on']} weights, written for {record['written_as']} ones: logits differ from the "
            f"trained model's by at most {record['quantised_difference']:.2e} "
            f"(norm {record['quantised_difference_share']:.1%}), which is what quantising the base changes"
        )
    print(f"out: {done.folder}")
    if url:
        print(f"pushed: {url}")
    return 0
