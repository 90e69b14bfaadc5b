"""The real data sets below SADNET_DATA. Tests that need one are skipped where it is missing."""

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get('SADNET_DATA') or 'SADNET_DATA-is-not-set')


def needs(*folders):
  """Marks tests that need these folders below SADNET_DATA."""
  missing = [folder for folder in folders if not (DATA / folder).is_dir()]
  return pytest.mark.skipif(bool(missing), reason=f'needs {", ".join(missing)} below SADNET_DATA')
