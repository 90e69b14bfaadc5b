"""Commands name the extra that has a missing package."""

import pytest

from sadnet_jax.extras import required
from tests.support.command import ROOT, finish, start


def test_a_missing_module_of_the_project_is_no_missing_extra():
  with pytest.raises(ModuleNotFoundError, match='sadnet_jax'), required('train'):
    import sadnet_jax.nothing  # noqa: F401


@pytest.mark.parametrize(
  ('module', 'missing', 'extra'),
  [
    ('train', 'ml_collections', 'train'),
    ('evaluate', 'ml_collections', 'evaluate'),
    ('tools.export_weights', 'ml_collections', 'evaluate'),
    ('tools.plot_training', 'tensorboardX', 'train,plot'),
    ('tools.measure_change', 'absl', 'evaluate'),
    ('sadnet_jax.data', 'tensorflow_datasets', 'train'),
  ],
)
def test_a_missing_extra_is_named(module, missing, extra):
  code = (
    f"import runpy, sys; sys.modules[{missing!r}] = None; runpy.run_module({module!r}, run_name='__main__')"
  )
  _, errors = finish(start('-c', code, cwd=ROOT), succeeds=False)
  assert errors.startswith(f'{missing} is missing; ')
  assert f'[{extra}]' in errors
  assert errors.count('\n') == 1
