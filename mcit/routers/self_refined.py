"""Self-refined retrieval: a guess under the first adapter, refined by reading the row under the adapter that was guessed.

Paper: MOS (Sun et al., "MOS: Model Surgery for Pre-Trained Model-Based Class-Incremental Learning", AAAI 2025,
arXiv:2412.09441), self-refined adapter retrieval and the two-stage ensemble. The first adapter's features are compared with
class prototypes by cosine; the most alike class names the stage whose adapter reads the row next; a linear head on those
features names a class again, until its stage is the one that read, or after `reads` reads. The class with the largest
``softmax(refined) + softmax(T cosine)``, T the number of adapters, says whose adapter answers the row.
State: "classes", (member, label) in order; "reads", "ensemble"; tensors by number of the class: "mean" and "covariance" under
its own adapter, "prototype" under the first one, "moved" (`recentre`); "head" (`mcit.routers.formulas.gaussians`).

A class is a stage, a task or an answer of it, for rows of instructions have no class. Features are the last hidden state at
the last prompt token. The head is aligned as in the released code: trained on samples of the Gaussians of all classes, from
the second class on. Differs: it begins as the nearest mean, for there is no head that training left behind; features are
measured in their pooled deviation, and prototypes are compared around their mean, because a few large features are common
to all states of a language model. An adapter trained on answers moves every row's state the same way, so that a head on raw
features names the adapter that read and nothing is refined; `recentre` takes out how far each adapter moves its own rows.
Reading is a pure function: the released code merges stored adapters in every batch it reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from mcit.core.config import Field
from mcit.core.interfaces import PoolContext
from mcit.core.seeds import seed_for
from mcit.core.types import JsonDict
from mcit.routers.base import Router, RouterConfig, States

if TYPE_CHECKING:
    from torch import Tensor


class SelfRefined(Router):
    """By Gaussians of features, in a loop of reads."""

    needs = frozenset({"hidden:last", "members"})

    class Config(RouterConfig):
        """Settings of statistics, alignment and retrieval."""

        classes: Literal["stage", "task", "answer"] = "stage"
        """What rows of one class have in common besides the stage."""
        most: int = Field(64, ge=1)
        """Classes of a stage with `classes: answer`; rarer answers are one class together."""
        rows: int = Field(1000, ge=2)
        """Training rows of a stage that statistics are of, drawn by its seed."""
        covariance: Literal["full", "diagonal"] = "full"
        """``full`` takes D x D numbers per class."""
        recentre: bool = True
        """Take the mean move of a stage's rows from the first adapter to their own out of statistics and reading."""
        reads: int = Field(4, ge=1)
        """Most reads of a row after the first guess; 4 in the released code."""
        ensemble: bool = True
        """Add the first guess's probabilities to the refined ones."""
        align_epochs: int = Field(30, ge=0)
        """Epochs of the head on samples; 0 leaves it the nearest mean."""
        align_lr: float = Field(0.005, ge=0)
        """Its learning rate at the top of the cosine."""
        samples: int = Field(240, ge=1)
        """Samples of a class per epoch: 5 batches of 48 in the released settings."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._classes: list[tuple[str, str]] = []

    def learn(self, member: str, ctx: PoolContext) -> None:
        """Statistics of the stage's classes under its own and under the first adapter; the head anew."""
        import torch

        from mcit.routers.formulas.gaussians import gaussian
        from mcit.routers.formulas.labelled import drawn, features, labels_of

        rows = drawn(ctx.data.stage_rows(), self.config.rows, ctx.seed)
        labels = labels_of(rows, self.config.classes, most=self.config.most)
        own_ND = features(rows, ctx)
        if self._classes:
            with ctx.as_member(self._classes[0][0]):
                first_ND = features(rows, ctx)
        else:
            first_ND = own_ND
        moved_D = (own_ND - first_ND).double().mean(0).float() * float(self.config.recentre)
        for label in sorted(set(labels)):
            places = torch.tensor([k for k, found in enumerate(labels) if found == label])
            number = f"{len(self._classes):06d}"
            mean_D, covariance = gaussian(own_ND[places] - moved_D, diagonal=self.config.covariance == "diagonal")
            self.tensors.put("mean", number, mean_D)
            self.tensors.put("covariance", number, covariance)
            self.tensors.put("prototype", number, first_ND[places].double().mean(0).float())
            self.tensors.put("moved", number, moved_D)
            self._classes.append((member, label))
        self._align(seed_for(ctx.seed, "self_refined"))

    def _align(self, seed: int) -> None:
        import torch

        from mcit.routers.formulas.gaussians import aligned, nearest_mean_head

        numbers = self.tensors.names("mean")
        known = [(self.tensors.require("mean", n), self.tensors.require("covariance", n)) for n in numbers]
        spread_KD = torch.stack([c if c.ndim == 1 else c.diagonal() for _, c in known])
        head = nearest_mean_head(torch.stack([mean for mean, _ in known]), spread_KD)
        if len(known) > 1:
            generator = torch.Generator().manual_seed(seed)
            c = self.config
            head = aligned(head, known, generator, epochs=c.align_epochs, count=c.samples, lr=c.align_lr)
        for name, value in head.items():
            self.tensors.put("head", name, value)

    @staticmethod
    def route(
        rows: Sequence[Mapping[str, str]],
        members: Sequence[str],
        state: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        states: States,
    ) -> list[str]:
        """Guess, read until the adapter stays, ensemble; a pass per adapter that some row visits."""
        import torch
        from torch.nn.functional import normalize

        owner_K = torch.tensor([members.index(member) for member, _ in state["classes"]])
        proto_KD = torch.stack([tensors[name] for name in sorted(tensors) if name.startswith("prototype|")])
        weight_KD, bias_K, shift_D, scale_D = (tensors[f"head|{n}"] for n in ("weight", "bias", "shift", "scale"))
        moved = {int(owner): tensors[f"moved|{k:06d}"] for k, owner in enumerate(owner_K)}
        first_BD = states(rows, members[0]).float().cpu()
        centre_D = proto_KD.mean(0)
        cosine_BK = normalize(first_BD - centre_D) @ normalize(proto_KD - centre_D).T
        here_B, refined_BK = owner_K[cosine_BK.argmax(1)], torch.zeros_like(cosine_BK)
        read: dict[tuple[int, int], Tensor] = {}
        moving = list(range(len(rows)))
        for _ in range(state["reads"]):
            for member in sorted({int(here_B[k]) for k in moving}):
                new = [k for k in moving if int(here_B[k]) == member and (k, member) not in read]
                if new:
                    x_ND = first_BD[new] if member == 0 else states([rows[k] for k in new], members[member])
                    logits_NK = (x_ND.float().cpu() - moved[member] - shift_D) / scale_D @ weight_KD.T + bias_K
                    read.update(((k, member), logits_NK[i]) for i, k in enumerate(new))
            before_B = here_B.clone()
            for k in moving:
                refined_BK[k] = read[k, int(before_B[k])]
                here_B[k] = owner_K[refined_BK[k].argmax()]
            moving = [k for k in moving if here_B[k] != before_B[k]]
            if not moving:
                break
        if state["ensemble"]:
            refined_BK = refined_BK.softmax(1) + (len(members) * cosine_BK).softmax(1)
        return [members[int(owner_K[k])] for k in refined_BK.argmax(1)]

    def state_dict(self) -> JsonDict:
        """Classes, and what `route` needs of the settings."""
        return {"classes": self._classes, "reads": self.config.reads, "ensemble": self.config.ensemble}

    def load_state_dict(self, state: JsonDict) -> None:
        """Take back the classes."""
        self._classes = [(str(member), str(label)) for member, label in state["classes"]]
