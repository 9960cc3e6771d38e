"""What training pulls on: losses that are zero where two models agree, and rows between rows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from optimizer.training.distill import distillation_loss, has_classes, label_loss, mix_rows


def answer(logits: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(logits=logits, hidden_states=None)


def test_classes_are_compared_by_probabilities_and_labels_as_they_are() -> None:
    theirs = torch.tensor([[2.0, -1.0, 0.5]])
    shifted = theirs + 3.0  # the same probabilities of one class among three, and others of three labels
    assert float(distillation_loss(answer(shifted), answer(theirs), None, "")) == pytest.approx(0.0, abs=1e-6)
    apart = float(distillation_loss(answer(shifted), answer(theirs), None, "", exclusive=False))
    assert apart == pytest.approx(27.0 / float(theirs.square().sum()))
    assert float(distillation_loss(answer(theirs), answer(theirs), None, "", exclusive=False)) == 0.0


def test_what_a_head_answers_with_is_read_from_its_configuration() -> None:
    import transformers

    assert has_classes(transformers.BertConfig(num_labels=3))
    assert not has_classes(transformers.BertConfig(num_labels=1))
    assert not has_classes(transformers.BertConfig(num_labels=3, problem_type="multi_label_classification"))


def test_labels_that_are_left_out_do_not_count() -> None:
    logits = torch.tensor([[[3.0, 0.0], [0.0, 5.0]]])
    both = label_loss(logits[:, :1], torch.tensor([[0]]))
    assert torch.equal(label_loss(logits, torch.tensor([[0, -100]])), both)


def test_mixed_rows_have_spans_of_others_and_keep_what_is_no_text() -> None:
    torch.manual_seed(1)
    rows, tokens = 64, 20
    ids = torch.arange(1, rows + 1).unsqueeze(1).repeat(1, tokens) * 100 + torch.arange(tokens)
    mask = (torch.arange(tokens) < torch.randint(6, tokens + 1, (rows, 1))).long()
    feeds = {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    mixed = mix_rows(feeds)
    new = mixed["input_ids"]
    changed = new != feeds["input_ids"]
    assert mixed["token_type_ids"] is feeds["token_type_ids"]
    assert mixed["attention_mask"] is feeds["attention_mask"]
    assert not changed[:, 0].any()
    assert not changed[mask == 0].any()
    assert 0.2 < float(changed.any(1).float().mean()) < 0.6
    # Every token lies where it lay in its own row, and a row has those of two at most, each in one span.
    assert torch.equal(new[mask == 1] % 100, torch.arange(tokens).repeat(rows, 1)[mask == 1])
    for row, line in enumerate(new):
        sources = {int(each) // 100 for each in line[mask[row] == 1]}
        assert len(sources) <= 2
        places = changed[row].nonzero().flatten().tolist()
        assert places == list(range(places[0], places[-1] + 1)) if places else True


def test_inputs_without_tokens_are_left_alone() -> None:
    feeds = {"pixel_values": torch.zeros(2, 3, 4, 4)}
    assert mix_rows(feeds) is feeds
