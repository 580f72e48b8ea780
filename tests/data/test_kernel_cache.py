"""A process that compiles the loops of views and one that reads them from numba's cache render the same bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
RENDER = """
import hashlib, json
import numpy as np, torch
from components.data import fused, view_kernels
from components.data.augment import DRAWS_PER_VIEW, Jitter, View, sample_params
from components.data.photos import Pixels
from components.data.randomness import hash_uniform

count = 16
shapes = np.array([[40 + index, 56 - index] for index in range(count)])
sizes = 3 * shapes.prod(1)
flat = np.random.default_rng(0).integers(0, 256, sizes.sum(), dtype=np.uint8)
pixels = Pixels(flat, np.cumsum(sizes) - sizes, shapes)
jitter = Jitter(0.8, 0.8, 0.8, 0.2, p=1.0)
views = {
    "crop": View(24),
    "color jitter": View(24, jitter=jitter),
    "gray": View(24, gray=1.0),
    "blur": View(24, blur=1.0),
    "solarize": View(24, solarize=1.0),
    "all": View(24, jitter=jitter, gray=0.2, blur=0.5, solarize=0.2),
}
digests = {}
for name, view in views.items():
    draws = hash_uniform(0, 0, np.arange(count), 0, DRAWS_PER_VIEW)
    rendered = fused.render(pixels, sample_params(view, torch.from_numpy(shapes), draws))
    digests[name] = hashlib.sha256(rendered.numpy().tobytes()).hexdigest()
stats = view_kernels.render_photos.stats
print(json.dumps([digests, sum(stats.cache_hits.values()), sum(stats.cache_misses.values())]))
"""


def test_compiled_and_cached_kernels_render_the_same_bytes(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(tmp_path)}
    results = []
    for _ in range(2):
        command = [sys.executable, "-c", RENDER]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout.splitlines()[-1]))
    (compiled, *from_compiler), (cached, *from_cache) = results
    assert (from_compiler, from_cache) == ([0, 1], [1, 0])
    assert len(set(compiled.values())) == 6  # each step changes the views
    assert cached == compiled
