"""Rows laid end to end: does each of them see itself alone?

A packed batch is one row with the positions of each conversation counted from zero. Whether attention then keeps them
apart depends on the architecture, on its kernel and on there being no cache, and where it does not, training goes on
without a complaint: each conversation is answered in the light of its neighbours. So the base itself is asked first.
"""

from __future__ import annotations

from typing import Any

from tasks.errors import BadInput

# Of the logits' spread, in the mean square. The same row in another place of a batch is rounded otherwise: in bfloat16
# random two-layer models and the demo's base are below 0.02; a row whose positions go on from its neighbour's, above.
_ROUNDING = 0.1


def require_apart(model: Any, asked: list[list[int]]) -> None:
    """Raise BadInput unless a packed row's logits are those of the row alone, and its neighbour's tokens are nothing
    to it: not one bit of the others changes with them. `asked`: token ids of a few rows."""
    import torch

    rows = [row[:64] for row in asked] if len(asked) > 1 else [asked[0][:64], asked[0][:64]]
    was_training = model.training
    model.eval()
    with torch.no_grad():
        together = logits(model, rows)
        alone = [logits(model, [row])[0] for row in rows]
        stranger = [[*rows[0][1:], rows[0][0]], *rows[1:]]
        beside_another = logits(model, stranger)
    model.train(was_training)
    seen = any(not torch.equal(a, b) for a, b in zip(together[1:], beside_another[1:], strict=True))
    far = max(float((a - b).square().mean().sqrt() / b.std()) for a, b in zip(together, alone, strict=True))
    if seen or not far <= _ROUNDING:
        what = "see each other" if seen else f"answer {far:.2g} of the logits' spread away from how each does alone"
        raise BadInput(
            "training.packing",
            True,
            f"does not go with this base here: packed rows {what}",
            "Leave it out: rows are batched by length.",
        )


def logits(model: Any, rows: list[list[int]]) -> list[Any]:
    """float32 tensors of (tokens, vocabulary), one a row, of rows laid end to end."""
    import torch

    ids = torch.tensor([[token for row in rows for token in row]], device=model.device)
    positions = torch.tensor([[at for row in rows for at in range(len(row))]], device=model.device)
    found = model(input_ids=ids, position_ids=positions).logits[0].float().cpu()
    return list(found.split([len(row) for row in rows]))
