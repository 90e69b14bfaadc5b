"""The exported ONNX model in ONNX Runtime beside the same network in JAX, on the CPU.

  python benchmarks/onnx_runtime.py --runs 7 --json benchmarks/results/onnx_runtime_cpu.json

Both denoise the same noisy image in one piece, float32, in this process and in turn, so that other load on
the machine affects both; the best time of each counts. Nothing is timed if their results differ by more than
0.0001. ONNX Runtime gets as many threads as JAX uses: one for each core that this process may run on.
Compilation and loading are not counted.
"""

from collections.abc import Sequence
from pathlib import Path
import sys

sys.path.append(str(Path(__file__).resolve().parent.parent))

from sadnet_jax.extras import required

with required('bench,train'):
  import onnxruntime

  from benchmarks import common, tables
  from benchmarks.image_size import noisy_image

import jax
import numpy as np

from sadnet_jax import Denoiser
from sadnet_jax.denoise.onnx_graph import INPUT, onnx_denoiser
from sadnet_jax.machine import usable_cores
from sadnet_jax.nn.sadnet import SADNet

MODEL = 'color'
# Largest difference of the results; rounding gives about 0.000003.
TOLERANCE = 1e-4
# Width and height.
SIZES = ((480, 320), (960, 640))


def onnx_session(model: SADNet, params: dict) -> onnxruntime.InferenceSession:
  """The network as an ONNX graph, loaded on the CPU with one thread for each core this process may run on."""
  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = usable_cores()
  # Otherwise its threads wait for more work for some 40 ms after a call, in what is timed next.
  options.add_session_config_entry('session.force_spinning_stop', '1')
  graph = onnx_denoiser(model, params).SerializeToString()
  return onnxruntime.InferenceSession(graph, options, providers=['CPUExecutionProvider'])


def measure(denoiser: Denoiser, sizes: Sequence[tuple[int, int]], runs: int) -> dict[str, dict]:
  """One row per size: seconds of both, the ratio of the best times, the largest difference of the results.

  Raises:
    ValueError: The results differ by more than `TOLERANCE`.
  """
  session = onnx_session(denoiser.model, denoiser.params)
  rows = {}
  for width, height in sizes:
    noisy = noisy_image(width, height)[None] / np.float32(255)
    transposed = np.ascontiguousarray(noisy.transpose(0, 3, 1, 2))
    calls = {
      'jax': lambda noisy=noisy: denoiser.network(noisy),
      'onnx_runtime': lambda given=transposed: session.run(None, {INPUT: given})[0],
    }
    # These calls compile, and are not counted.
    ours, theirs = (call() for call in calls.values())
    difference = float(np.abs(theirs.transpose(0, 2, 3, 1) - ours).max())
    # NaN fails this comparison.
    if not difference <= TOLERANCE:
      raise ValueError(
        f'{width}x{height}: the results differ by {difference:.1e}, more than {TOLERANCE:g}; not timed'
      )
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs):
      for name, call in calls.items():
        seconds[name].append(common.seconds_of(call))
    rows[f'{width}x{height}'] = {
      'what': f'{width}x{height}',
      **{name: common.summary(each) for name, each in seconds.items()},
      'ratio_of_best': min(seconds['onnx_runtime']) / min(seconds['jax']),
      'largest_difference': difference,
    }
  return rows


def main(argv: Sequence[str] | None = None) -> None:
  arguments = common.make_parser(__doc__, runs=7).parse_args(argv)
  # ONNX Runtime's CPU package is measured.
  jax.config.update('jax_platforms', 'cpu')
  results = common.describe('onnx_runtime.py', common.options_of(arguments), ('flax', 'onnx', 'onnxruntime'))
  results |= {
    'threads': usable_cores(),
    'model': MODEL,
    'rows': measure(Denoiser.from_pretrained(MODEL), SIZES, arguments.runs),
  }
  print('\n'.join(tables.onnx_runtime_table(results)))
  common.finish(results, arguments.json)


if __name__ == '__main__':
  main()
