"""Training rows per second against TRL's SFTTrainer and a plain transformers Trainer, and against the same code with packs off.

    pip install -e ".[bench]"
    python scripts/bench/train.py [--json FILE] [--only questions-64 …] [--rounds 5] [--steps 4] [--limit 170] [--threads 2]
                                  [--memory]

Every side trains the same LoRA pairs (every linear of the language model, equal values at the start) with AdamW on the same
rows in the same order. The losses of the first ten steps are compared before anything is timed; a relative difference above
1e-4 ends the run. Then the sides take turns, `rounds` times `steps` steps each after one that does not count; a round's figure
is its median step, a case's the median of its rounds, with the smallest and the largest. Where a case would take longer than
`limit` seconds, building its sides left out, its rounds have fewer steps, one at least. Data are read, decoded and tokenised
inside the steps on every side, without worker processes (TRL decodes pictures once, when its data set is made). Cases:

  questions-64, questions-576   five questions per picture, 64 or 576 picture tokens, a LLaVA of 16 M parameters
  mixed                         one question per picture, 64 picture tokens, questions and answers of unlike length
  text                          texts of unlike length
  embedded                      ten questions per picture of easy-vqa, the embedded model; also against packs off

`utilisation` is the model FLOPs of a step (matrix products, convolutions and attention as torch counts them over packs, where
nothing is padded or computed twice) over its time, against the rate of one large fp32 matrix product measured beside it. Peak
memory is of a side's process (``--memory``). Every side is a process of its own: with the threads of several in one, those of
OpenMP are more than the processors, and then they sleep between any two operations, which costs a quarter of the speed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
LORA = {"kind": "lora", "rank": 16, "alpha": 32, "also_train": [], "carry": "merge"}
LR = 2e-4
CHECKED = 10
CLOSE = 1e-4


@dataclass(frozen=True)
class Case:
    """Rows and model of a comparison."""

    name: str
    batch: int
    per_picture: int = 0
    """Rows of each picture; 0 is text."""
    tokens: int = 0
    """Picture tokens."""
    words: tuple[int, int] = (4, 8)
    """Shortest and longest question in words."""
    answer: tuple[int, int] = (1, 3)
    embedded: bool = False
    sides: tuple[str, ...] = ("mcit", "trl", "trainer")


CASES = (
    Case("questions-64", 20, per_picture=5, tokens=64),
    Case("questions-576", 10, per_picture=5, tokens=576),
    Case("mixed", 16, per_picture=1, tokens=64, words=(2, 24), answer=(1, 12)),
    Case("text", 16, words=(4, 60), answer=(1, 20)),
    Case("embedded", 20, per_picture=10, embedded=True, sides=("mcit", "padded", "trl")),
)


# ---- model and rows -------------------------------------------------------------------------------------------------
def small_llava(folder: Path, tokens: int) -> Path:
    """A LLaVA of 16 M parameters with random weights and a tokenizer of bytes; `tokens` per picture."""
    import torch
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        GenerationConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    from mcit.models.families.tiny import IMAGE, TEMPLATE, byte_tokenizer

    tokenizer, patch = byte_tokenizer(), 8
    size = patch * round((tokens or 64) ** 0.5)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=192, intermediate_size=768, num_hidden_layers=6, num_attention_heads=4, image_size=size,
            patch_size=patch, projection_dim=64,
        ),
        text_config=LlamaConfig(
            vocab_size=2048, hidden_size=384, intermediate_size=1024, num_hidden_layers=7, num_attention_heads=8,
            max_position_embeddings=2048, bos_token_id=None, tie_word_embeddings=False, **ends,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE), vision_feature_layer=-2,
        vision_feature_select_strategy="default", tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(do_sample=False, **ends)
    model.save_pretrained(folder)
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}, do_center_crop=True
    )
    LlavaProcessor(
        image_processor=pictures, tokenizer=tokenizer, patch_size=patch, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=TEMPLATE,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def made_rows(case: Case, count: int, folder: Path) -> Path:
    """A recipe of random words about pictures of noise."""
    import yaml
    from PIL import Image

    draw = random.Random(0)
    size = 8 * round((case.tokens or 64) ** 0.5)
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(count):
        question = " ".join("".join(draw.choices("abcdefgh", k=4)) for _ in range(draw.randint(*case.words)))
        answer = " ".join("".join(draw.choices("abcdefgh", k=3)) for _ in range(draw.randint(*case.answer)))
        row = {
            "id": f"r{number}",
            "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}],
        }
        if case.per_picture:
            name = f"{number // case.per_picture}.png"
            if number % case.per_picture == 0:
                noise = Image.frombytes("RGB", (size, size), draw.randbytes(3 * size * size))
                noise.save(folder / "images" / name)
            row["conversations"][0]["value"] = f"<image>\n{question}"
            row["image"] = name
        rows.append(row)
    (folder / "train.json").write_text(json.dumps(rows))
    source = {"kind": "llava", "path": "train.json", "images": "images", "split": "train"}
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"name": f"bench/{case.name}", "task": "bench", "sources": [source]}))
    return recipe


# ---- the sides ------------------------------------------------------------------------------------------------------
class Ours:
    """A stage of mcit, step by step."""

    def __init__(self, case: Case, base: dict[str, Any], recipe: str, steps: int, *, packs: bool = True) -> None:
        from mcit.models.basefiles import base_digest
        from mcit.models.lineage import Lineage
        from mcit.models.load import load_base
        from mcit.plan.plan import make_plan, parse_run
        from mcit.plan.preflight import make_encoder
        from mcit.train.stage import Material, build_stage

        optim = {
            "batch": case.batch, "lr": LR, "warmup": 0, "schedule": "constant", "clip": 1.0,
            "rows_per_image": max(1, case.per_picture),
        }  # fmt: skip
        config, problems = parse_run(
            {
                "name": "bench", "base": {"dtype": "fp32", **base},
                "engine": {"micro_batch": case.batch, "workers": 0, "packs": packs},
                "defaults": {"optim": optim, "adapter": LORA},
                "stages": [{"recipe": recipe, "max_steps": steps, "epochs": 99}],
                "eval": {"tasks": "none"}, "checkpoint": {"every": 0},
            }
        )  # fmt: skip
        if config is None or problems:
            raise SystemExit("\n".join(map(str, problems)))
        plan = make_plan(config)
        self.model_path = plan.model_path
        lineage = Lineage(str(plan.model_path), base_digest(plan.model_path))
        material = Material(plan, load_base(plan.model_path, dtype="fp32"), make_encoder(plan), lineage)
        self.encoder = material.encoder
        self.work = build_stage(plan.stages[0], material, inherited={})
        self.number = 0

    def adapter(self) -> dict[str, Any]:
        """Values of the LoRA pairs now, by parameter name."""
        return {n: p.detach().clone() for n, p in self.work.engine.model.named_parameters() if ".lora_" in n}

    def order(self, count: int) -> list[Any]:
        """The rows of the first steps, in order."""
        stream = self.work.streams.streams["task"]
        return [stream.at(position) for position in range(count)]

    def step(self) -> float:
        """One step; its loss."""
        from mcit.train.loop import run_step

        self.work.ctx.at(self.number)
        run_step(self.work, self.work.streams.next_step())
        self.number += 1
        return float(self.work.engine.metrics()["loss"])

    def serve(self, turns: Turns) -> None:
        """A step for every turn."""
        while True:
            turns.wait()
            turns.done(self.step())

    def flops(self) -> int:
        """Of one more step."""
        from mcit.engine.flops import FlopCount

        with FlopCount() as counter:
            self.step()
        return counter.flops


class Theirs:
    """A Trainer, held between two steps."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make

    def serve(self, turns: Turns) -> None:
        """Train, a step for every turn."""
        import torch
        from transformers import TrainerCallback

        class Held(TrainerCallback):
            """Tells the loss of a step and waits for the next turn."""

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                turns.done(losses.pop())
                turns.wait()

        losses: list[float] = []
        trainer = self._make(Held())
        own = trainer.training_step

        def training_step(*args: Any, **kwargs: Any) -> Any:
            loss = own(*args, **kwargs)
            losses.append(float(loss))
            return loss

        trainer.training_step = training_step
        torch.use_deterministic_algorithms(False)  # as its users run it
        turns.wait()
        trainer.train()


class Turns:
    """A side's end of its pipe: what it is asked for, and what it answers."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._start = clock, 0.0
        self.known: dict[str, Callable[[], Any]] = {"peak": _peak}
        """What can be asked for beside steps."""
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print is not an answer

    def ready(self) -> None:
        """Say that the first step may be asked for."""
        self._say("ready")

    def wait(self) -> None:
        """Answer until a step is asked for; the end of the questions is that of the process."""
        for line in sys.stdin:
            if line.strip() == "step":
                self._start = self._clock()
                return
            self._say(self.known[line.strip()]())
        os._exit(0)

    def done(self, loss: float) -> None:
        """The step's loss and seconds."""
        self._say([loss, self._clock() - self._start])

    def _say(self, found: Any) -> None:
        print(json.dumps(found), file=self._out, flush=True)


def _peak() -> float:
    import torch

    from mcit.engine.peak import peak_bytes

    return peak_bytes(torch.device("cpu")) / 2**20


class Side:
    """A side in a process of its own."""

    def __init__(self, case: Case, name: str, args: argparse.Namespace) -> None:
        sizes = [f"--{key}={getattr(args, key)}" for key in ("rounds", "steps", "threads", "clock")]
        command = [sys.executable, __file__, "--only", case.name, "--serve", name, *sizes]
        self.seconds = 0.0
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._name = name
        self._answer()

    def step(self) -> float:
        """One step; its loss, and in `seconds` what it took."""
        loss, self.seconds = self.ask("step")
        return float(loss)

    def ask(self, what: str) -> Any:
        """``step``, ``peak`` or ``flops``."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._name} ended; see what it says: --only … --serve {self._name}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


def arguments(kind: Any, case: Case, steps: int, folder: Path, **more: Any) -> Any:
    """Settings of a Trainer that are those of the stage."""
    return kind(
        output_dir=str(folder), per_device_train_batch_size=case.batch, max_steps=steps, learning_rate=LR,
        lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0, logging_steps=10**6,
        logging_nan_inf_filter=False, save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, bf16=False,
        gradient_checkpointing=False, dataloader_num_workers=0, remove_unused_columns=False,
        train_sampling_strategy="sequential", seed=0, **more,
    )  # fmt: skip


def peft_model(ours: Ours, values: dict[str, Any]) -> Any:
    """The base with the same LoRA pairs through peft."""
    import torch
    from peft import LoraConfig, get_peft_model

    from mcit.models.load import load_base

    model = load_base(ours.model_path, dtype="fp32")
    targets = sorted({name.partition(".lora_")[0] for name in values})
    config = LoraConfig(r=LORA["rank"], lora_alpha=LORA["alpha"], target_modules=targets, lora_dropout=0.0)
    wrapped = get_peft_model(model, config)
    named = dict(wrapped.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            named[f"base_model.model.{name}"].copy_(value)
    return wrapped


def written(ours: Ours, rows: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Rows as prompt, completion and pictures: the text that the stage trains on, tokenised by who trains."""
    from PIL import Image

    for row in rows:
        rendering = ours.encoder._template.render(row)
        text, prompt = rendering.text, rendering.prompts[-1]
        pictures = [Image.open(Path(row.root) / name).convert("RGB") for name in row.images]
        yield {"prompt": text[:prompt], "completion": text[prompt:], **({"images": pictures} if row.images else {})}


def trl_side(ours: Ours, values: dict[str, Any], case: Case, rows: Sequence[Any], steps: int, folder: Path) -> Theirs:
    """TRL's SFTTrainer as its documentation sets it up for prompts and completions."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    processor = ours.encoder.processor
    data = Dataset.from_list(list(written(ours, rows)))
    args = arguments(SFTConfig, case, steps, folder, completion_only_loss=True, max_length=None, packing=False)
    if not case.per_picture:
        processor = processor.tokenizer

    def make(held: Any) -> Any:
        return SFTTrainer(
            peft_model(ours, values), args=args, train_dataset=data, processing_class=processor, callbacks=[held]
        )

    return Theirs(make)


def trainer_side(
    ours: Ours, values: dict[str, Any], case: Case, rows: Sequence[Any], steps: int, folder: Path
) -> Theirs:
    """A plain Trainer with a short collator: one call of the processor per batch, labels after the prompt's length."""
    import torch
    from transformers import Trainer, TrainingArguments

    processor, tokenizer = ours.encoder.processor, ours.encoder.processor.tokenizer

    def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
        texts = [e["prompt"] + e["completion"] for e in examples]
        tokenizer.padding_side = "right"
        if case.per_picture:
            images = [e["images"] for e in examples]
            out = processor(images=images, text=texts, padding=True, return_tensors="pt", add_special_tokens=False)
        else:
            out = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
        labels = torch.full_like(out["input_ids"], -100)
        for k, example in enumerate(examples):
            length = len(tokenizer(example["completion"], add_special_tokens=False)["input_ids"])
            end = int(out["attention_mask"][k].sum())
            labels[k, end - length : end] = out["input_ids"][k, end - length : end]
        wanted = ("input_ids", "attention_mask", "pixel_values")
        return {**{key: out[key] for key in wanted if key in out}, "labels": labels}

    data = list(written(ours, rows))

    def make(held: Any) -> Any:
        return Trainer(
            peft_model(ours, values), args=arguments(TrainingArguments, case, steps, folder), train_dataset=data,
            data_collator=collate, callbacks=[held],
        )  # fmt: skip

    return Theirs(make)


# ---- measuring ------------------------------------------------------------------------------------------------------
def made(case: Case, name: str, args: argparse.Namespace, home: Path) -> Ours | Theirs:
    """A side of a case, ready for its first step."""
    steps = CHECKED + args.rounds * (args.steps + 1) + 4
    if case.embedded:
        base, recipe = {"family": "embedded"}, "demo/easyvqa-ten"
    else:
        base = {"family": "hf", "model": str(small_llava(home / "model", case.tokens))}
        recipe = str(made_rows(case, min(480, case.batch * steps), home / "data"))
    ours = Ours(case, base, recipe, steps, packs=name != "padded")
    if name not in OTHERS:
        return ours
    return OTHERS[name](ours, ours.adapter(), case, ours.order(case.batch * steps), steps, home / name)


OTHERS = {"trl": trl_side, "trainer": trainer_side}


def serve(case: Case, name: str, args: argparse.Namespace) -> None:
    """Be a side of a case: take the steps that standard input asks for."""
    with tempfile.TemporaryDirectory() as home:
        turns = Turns(clock_of(args))
        side = made(case, name, args, Path(home))
        if isinstance(side, Ours):
            turns.known["flops"] = side.flops
        turns.ready()
        side.serve(turns)


def clock_of(args: argparse.Namespace) -> Callable[[], float]:
    """What times a step."""
    return time.process_time if args.clock == "cpu" else time.perf_counter


def compared(sides: dict[str, Any]) -> float:
    """The largest relative difference between the losses of any side and ours over the first steps."""
    losses = {name: [side.step() for _ in range(CHECKED)] for name, side in sides.items()}
    mine = losses["mcit"]
    worst = max(abs(a - b) / abs(b) for other in losses.values() for a, b in zip(other, mine, strict=True))
    if worst > CLOSE:
        raise SystemExit(f"the losses differ by {worst:.1e}: {json.dumps(losses)}")
    return worst


def fitting(limit: float, spent: float, rounds: int, steps: int) -> int:
    """Steps of a round, `steps` at most, that keep a case within `limit` seconds after `spent` on the steps compared."""
    each = spent / CHECKED
    return max(1, min(steps, int((limit - spent) / (rounds * each)) - 1))


def matmul_rate(clock: Callable[[], float]) -> float:
    """FLOP/s of a product of two fp32 matrices of 1536 rows and columns: the best of twelve of each library."""
    import torch

    from mcit.engine.linears import product

    a, b = torch.randn(1536, 1536), torch.randn(1536, 1536)
    seconds = []
    for multiply in (torch.mm, product) * 12:
        start = clock()
        multiply(a, b)
        seconds.append(clock() - start)
    return 2 * 1536**3 / min(seconds)


def measure(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """Rows per second of each side, ratios round by round, FLOP utilisation."""
    names = [name for name in case.sides if name not in OTHERS or name in args.sides]
    sides = {name: Side(case, name, args) for name in names}
    start = time.perf_counter()
    difference = compared(sides)
    steps = fitting(args.limit, time.perf_counter() - start, args.rounds, args.steps)
    rounds: dict[str, list[float]] = {side: [] for side in sides}
    rates = []
    for number in range(args.rounds):
        for side in names[number % len(names) :] + names[: number % len(names)]:
            seconds = []
            for k in range(steps + 1):
                sides[side].step()
                if k >= 1:
                    seconds.append(sides[side].seconds)
            rounds[side].append(statistics.median(seconds))
        rates.append(matmul_rate(clock_of(args)))
    flops = sides["mcit"].ask("flops")
    peaks = {name: side.ask("peak") for name, side in sides.items()}
    for one in sides.values():
        one.close()
    ratios = {
        side: [other / mine for other, mine in zip(rounds[side], rounds["mcit"], strict=True)]
        for side in sides
        if side != "mcit"
    }
    used = [flops / seconds / rate for seconds, rate in zip(rounds["mcit"], rates, strict=True)]
    found = {
        "case": case.name,
        "rounds": args.rounds,
        "steps_per_round": steps,
        "loss_difference": difference,
        "rows_per_second": {side: spread([case.batch / s for s in seconds]) for side, seconds in rounds.items()},
        "times": {side: spread(values) for side, values in ratios.items()},
        "utilisation": spread(used),
        "flops_per_step": flops,
        "matmul_gflops": spread([rate / 1e9 for rate in rates]),
    }
    if args.memory:
        found["peak_mib"] = peaks
    show(found)
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def show(found: dict[str, Any]) -> None:
    """A case in a few lines."""
    print(
        f"{found['case']}: losses of {CHECKED} steps differ by {found['loss_difference']:.1e} at most; "
        f"{found['rounds']} rounds of {found['steps_per_round']} steps"
    )
    for side, rate in found["rows_per_second"].items():
        more = found["times"].get(side)
        ratio = f"  mcit is {more['median']:.2f} times as fast ({more['min']:.2f} to {more['max']:.2f})" if more else ""
        memory = f"  peak {found['peak_mib'][side]:.0f} MiB" if "peak_mib" in found else ""
        print(f"  {side:<8} {rate['median']:8.2f} rows/s ({rate['min']:.2f} to {rate['max']:.2f}){memory}{ratio}")
    used = found["utilisation"]
    print(
        f"  utilisation {used['median']:.2f} ({used['min']:.2f} to {used['max']:.2f}) of the fp32 matmul rate",
        flush=True,
    )


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="*", choices=[case.name for case in CASES])
    parser.add_argument("--sides", nargs="*", default=["trl", "trainer"], help="what to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument(
        "--limit", type=float, default=170.0, help="seconds of a case, from which on rounds are shorter"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: processor time, on a busy machine"
    )
    parser.add_argument("--memory", action="store_true", help="measure peak memory of each side too")
    parser.add_argument("--serve", metavar="SIDE", help="be one side, as a process that the others' starts")
    args = parser.parse_args()
    import torch
    from transformers.utils import logging

    from mcit.cli.common import start_torch

    start_torch()
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    chosen = [case for case in CASES if not args.only or case.name in args.only]
    if args.serve:
        serve(chosen[0], args.serve, args)
    results = []
    for case in chosen:
        results.append(measure(case, args))
    if args.json:
        import transformers

        machine = {
            "machine": platform.platform(), "cpus": os.cpu_count(), "threads": args.threads, "load": os.getloadavg()[0],
            "torch": torch.__version__, "transformers": transformers.__version__,
        }  # fmt: skip
        with contextlib.suppress(ImportError):
            import trl

            machine["trl"] = trl.__version__
        args.json.write_text(json.dumps({"machine": machine, "cases": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
