"""The warm start is ridge regression, and brings image tokens near the words of their answers."""

from pathlib import Path

import torch

from components.connector.warm_start import RIDGE, warm_start
from tests.connector import tiny


def colors(count: int = 40) -> tuple[torch.Tensor, list[str]]:
    names = [list(tiny.COLORS)[index % 4] for index in range(count)]
    flat = torch.tensor([tiny.COLORS[name] for name in names]).float()[:, :, None, None].expand(-1, 3, 16, 16)
    return (flat + 8 * torch.randn(flat.shape)) / 128 - 1, names


def test_tokens_of_an_image_are_nearest_to_the_words_of_its_answer(tmp_path: Path) -> None:
    model, processor = tiny.vlm(tmp_path)
    torch.manual_seed(0)
    pixels, names = colors()
    ids = {name: processor.tokenizer(name, add_special_tokens=False)["input_ids"] for name in tiny.COLORS}
    warm_start(model, [(pixels[:24], [ids[name] for name in names[:24]])])
    words = model.get_input_embeddings().weight
    means = torch.stack([words[torch.tensor(ids[name])].mean(0) for name in tiny.COLORS])
    with torch.no_grad():
        tokens = model.model.vision_tower(pixels[24:]).last_hidden_state
        projected = model.model.multi_modal_projector(tokens).mean(1)
    centered = means - means.mean(0)
    nearest = ((projected - means.mean(0)) @ centered.T).argmax(1)
    assert [list(tiny.COLORS)[place] for place in nearest] == names[24:]


def test_it_is_ridge_regression_up_to_one_scale(tmp_path: Path) -> None:
    model, processor = tiny.vlm(tmp_path)
    torch.manual_seed(0)
    pixels, names = colors(12)
    ids = [processor.tokenizer(name, add_special_tokens=False)["input_ids"] for name in names]
    warm_start(model, [(pixels[:5], ids[:5]), (pixels[5:], ids[5:])])
    words = model.get_input_embeddings().weight.double()
    with torch.no_grad():
        tokens = model.model.vision_tower(pixels).last_hidden_state.double()
    x = tokens.flatten(0, 1) - tokens.flatten(0, 1).mean(0)
    y = torch.stack([words[torch.tensor(i)].mean(0) for i in ids for _ in range(tokens.shape[1])])
    weight = torch.zeros(y.shape[1], x.shape[1], dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weight], max_iter=2000, line_search_fn="strong_wolfe", tolerance_change=1e-14)
    penalty = RIDGE * x.square().sum(0).mean()
    y = y.detach() - y.detach().mean(0)

    def loss() -> torch.Tensor:
        solver.zero_grad()
        value = (x @ weight.T - y).square().sum() + penalty * weight.square().sum()
        value.backward()
        return value

    solver.step(loss)
    actual = model.model.multi_modal_projector.linear.weight.detach().double().flatten()
    assert torch.cosine_similarity(actual, weight.detach().flatten(), dim=0) > 0.9999
