import pytest
import torch

from mcit.data.collate import collate
from mcit.engine.pack import pack_rows
from mcit.selftest import workload

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["shape", "base"])
def test_rows_ask_about_shared_pictures(kind):
    """Three rows of two pictures, on a random shape and on a base that builds itself; prompts have no answer."""
    if kind == "shape":
        made = workload.of_shape("tiny", device=CPU, rows=3, questions=2)
    else:
        made = workload.of_base(workload.base_of("tiny"), device=CPU, rows=3, questions=2)
    batch = collate(made.train, stream="task", pad_id=made.pad_id)
    pack = pack_rows(batch, always=True)
    assert len(batch.rows) == 3 and len(pack.pixels["pixel_values"]) == 2
    assert len(pack) < int(batch.attention_BT.sum())
    assert all((sample.labels_T != -100).any() for sample in made.train)
    assert all((sample.labels_T == -100).all() for sample in made.asked) and len(made.asked) == 20
    assert len({len(sample.input_ids_T) for sample in made.train}) > 1
    assert not made.bf16 and not any(p.requires_grad for p in made.model.parameters())


def test_a_cpu_gets_the_tiny_shape():
    assert workload.size_for(CPU) == "tiny" and workload.dtype_for(CPU) == "fp32"


def test_a_gpu_gets_what_it_holds(monkeypatch):
    for memory, size in ((24, "tiny"), (80, "7b"), (141, "13b")):
        card = type("Card", (), {"total_memory": memory * 10**9})
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, card=card: card)
        assert workload.size_for(torch.device("cuda")) == size
