"""A router: the adapter under which a row's state is nearest to the mean state of the rows it was trained on."""

import torch

from mcit.core.config import Field
from mcit.routers.base import Router, RouterConfig


class Nearest(Router):
    """Last state of the prompt, mean per member; a task that comes back goes on training its member."""

    needs = frozenset({"hidden:last"})

    class Config(RouterConfig):
        """Settings of the means."""

        rows: int = Field(8, ge=1)
        """Rows of a mean."""

    def __init__(self, config):
        super().__init__(config)
        self._tasks = {}

    def join(self, members, data):
        """The member of the stage's task, if it was trained before."""
        return next((self._tasks[t.name] for t in data.stage.tasks if t.name in self._tasks), None)

    def learn(self, member, ctx):
        """Mean state where the answer begins."""
        self._tasks.update({task.name: member for task in ctx.stage.tasks})
        states = []
        for batch, out in ctx.forward_pass(ctx.data.stage_rows()[: self.config.rows], rows=1):
            place = int(batch.predicts_BT[0].nonzero()[0])
            states.append(out.hidden["last"][0, place].float().cpu())
        self.tensors.put("mean", member, torch.stack(states).mean(0))

    @staticmethod
    def route(rows, members, state, tensors, states):
        """Smallest Euclidean distance."""
        import torch

        distances = [(states(rows, m) - tensors[f"mean|{m}"]).norm(dim=1) for m in members]
        return [members[int(k)] for k in torch.stack(distances).argmin(0)]

    def state_dict(self):
        """Members by task."""
        return {"tasks": self._tasks}

    def load_state_dict(self, state):
        """Take them back."""
        self._tasks = dict(state["tasks"])
