"""How far two computations of one number may differ, and why.

Bits are compared only where the same computation is done again: the same code, shapes, number of threads and settings
of the process. Anything else adds up in another order, with other instructions or in another function; it has one of
these tolerances, or a number with its reason beside it. Where a comparison names none, those of `pytest.approx` (1e-6)
and `torch.allclose` (1e-5, both relative) hold, which suffice for float64, and for one or two operations in float32.
"""

FLOAT64 = 1e-9
"""float64 rounds by 1e-16. Sums of a few hundred terms, exponentials of numbers up to 20 (a similarity divided by a
temperature) and divisions by small deviations amplify that to at most 1e-12 here; a wrong formula changes 1e-3."""

FLOAT32 = 1e-5
"""float32 rounds by 6e-8. A sum of n terms rounds up to n times, typically √n times: this allows 160 in a row."""

LAYERS_FLOAT32 = 1e-4
"""Outputs near 1 of several layers in float32: each adds its sums' rounding, and layer norm divides by deviations below
1, which amplifies what came before."""

BF16 = 0.1
"""bf16 has 8 significant bits and rounds values near 1 by 0.004; some twenty roundings in a row, as in two blocks of a
ViT, add up to this if all have one sign."""

FINITE_DIFFERENCE = 1e-6
"""Central differences in float64 with steps from 1e-7 to 1e-5: rounding of a loss near 1, divided by the step, is up to
1e-8, and the third derivative times the step's square is less."""

PATIENCE = 1800
"""Seconds after which another process counts as hung. What is waited for takes at most a minute on two idle cores; a
machine may be ten times slower, and busy. Tests that pass never wait for it."""
