"""Documents of a row read singly: by both kinds of mask, with and without gradients, compiled, and in whole models."""

import dataclasses
from itertools import pairwise

import pytest
import torch
from models import SMALL, TINY, disturb, our_logits, tokens
from torch import Tensor

from gpt2wds.attention import document_blocks, document_mask, positions_in_documents
from gpt2wds.model import GPT2, VOCAB_SIZE, autocast
from gpt2wds.tokenizer import END_OF_TEXT

END = SMALL.end_of_text
# Where documents begin, in two rows: in the midst of one, at once, twice running, and with a row's last token.
BOUNDARIES = ([20, 21, 60, 99], [0, 50])


def masking_model() -> GPT2:
    model = GPT2(dataclasses.replace(SMALL, document_masking=True))
    disturb(model)
    return model


@pytest.fixture
def rows() -> Tensor:
    ids = tokens(SMALL, 2, 100) % END  # no boundaries but ours
    for row, boundaries in zip(ids, BOUNDARIES, strict=True):
        row[boundaries] = END
    return ids


def singly(model: GPT2, rows: Tensor) -> Tensor:
    """Logits of each document in a row of its own, laid end to end again."""
    alone = GPT2(SMALL)
    alone.load_state_dict(model.state_dict())
    found = []
    for row, boundaries in zip(rows, BOUNDARIES, strict=True):
        bounds = sorted({0, *boundaries, len(row)})
        pieces = [row[None, begin:end] for begin, end in pairwise(bounds)]
        found.append(torch.cat([our_logits(alone, piece) for piece in pieces], dim=1))
    return torch.cat(found)


def test_the_boundary_is_the_tokenizers() -> None:
    assert TINY.end_of_text == END_OF_TEXT == VOCAB_SIZE - 1


def test_logits_are_those_of_documents_alone(rows: Tensor) -> None:
    model = masking_model()
    expected = singly(model, rows)
    torch.testing.assert_close(our_logits(model, rows), expected, rtol=0, atol=1e-5)
    model.config = SMALL
    assert (our_logits(model, rows) - expected).abs().max() > 0.1  # else this would show nothing


def test_logits_by_flex_attention_are_the_same(rows: Tensor) -> None:
    """What a graph compiled for CUDA does, without a graph and without CUDA, where it has no gradients."""
    model = masking_model()
    places = positions_in_documents(rows, END)
    with torch.no_grad():
        hidden, _ = model.hidden(rows, positions=places, visible=document_blocks(rows, END))
        torch.testing.assert_close(model.logits(hidden), singly(model, rows), rtol=0, atol=1e-5)


def test_gradients_are_those_of_documents_alone(rows: Tensor) -> None:
    """A token's embedding has a gradient from its own document's logits only."""
    model = masking_model()
    mask = document_mask(rows, END, torch.float32)
    x = torch.randn(2, 100, SMALL.n_embd, requires_grad=True)
    model.h[0](x, None, mask)[0][0, 60:99].sum().backward()
    assert x.grad is not None
    touched = x.grad.abs().amax(dim=2) > 0
    assert touched[0].nonzero().flatten().tolist() == list(range(60, 99)) and not touched[1].any()


def test_loss_in_bfloat16(rows: Tensor) -> None:
    model = masking_model()
    batch = (rows[:, :-1], rows[:, 1:], torch.ones(2))
    exact = model(*batch)
    with autocast(torch.device("cpu"), "bfloat16"):
        loss = model(*batch)
    assert loss != exact
    torch.testing.assert_close(loss, exact, rtol=3e-3, atol=0)


def test_a_row_without_boundaries_is_one_document(rows: Tensor) -> None:
    model, ids = masking_model(), tokens(SMALL, 2, 100) % END
    masked = our_logits(model, ids)
    model.config = SMALL
    torch.testing.assert_close(our_logits(model, ids), masked, rtol=0, atol=1e-5)


def test_keys_and_values_do_without_a_mask(rows: Tensor) -> None:
    """Sampling: a prompt is one document, and `<|endoftext|>` ends it."""
    model, ids = masking_model(), rows[1:, :50]
    with torch.no_grad():
        hidden, past = model.hidden(ids[:, :40])
        parts = [hidden]
        for i in range(40, 50):
            hidden, past = model.hidden(ids[:, i : i + 1], past)
            parts.append(hidden)
    torch.testing.assert_close(
        model.logits(torch.cat(parts, dim=1)).detach(), our_logits(model, ids), rtol=0, atol=1e-5
    )


@pytest.mark.slow
def test_nothing_is_compiled_again_for_other_boundaries(rows: Tensor) -> None:
    """One graph, without breaks, for any tokens of a shape; with blocks computed again too, and by both masks."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    model = masking_model()
    model.activation_checkpointing = True
    compiled = torch.compile(model, dynamic=False, fullgraph=True, backend=backend)
    for ids in (rows, rows.flip(1), tokens(SMALL, 2, 100) % END):
        batch = (ids[:, :-1], ids[:, 1:], torch.ones(2))
        torch.testing.assert_close(compiled(*batch), model(*batch), rtol=1e-5, atol=1e-5)
    assert len(graphs) == 1

    graphs.clear()
    by_flex = torch.compile(
        lambda ids: model.hidden(ids, positions=positions_in_documents(ids, END), visible=document_blocks(ids, END))[0],
        dynamic=False,
        fullgraph=True,
        backend=backend,
    )
    with torch.no_grad():
        for ids in (rows, rows.flip(1)):
            torch.testing.assert_close(by_flex(ids), model.hidden(ids)[0], rtol=0, atol=1e-5)
    assert len(graphs) == 1
