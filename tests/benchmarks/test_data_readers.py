"""Every reader is timed, and its rows can be shown."""

import json

from benchmarks import data_readers
from tests.support import dataset_files

READERS = [('files', 4), ('tiles', 4), ('memory', 1)]


def test_every_reader_is_timed(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(data_readers, 'WARM_UP_SECONDS', 0.01)
  clean, polyu = tmp_path / 'clean', tmp_path / 'polyu'
  for i in range(3):
    dataset_files.write(clean / f'{i}.png', dataset_files.picture(48, 64, i))
  dataset_files.polyu(polyu)
  size = ['--patch_px=16', '--batch_size=2', '--seconds=0.01', '--crops_per_image=4']
  output = tmp_path / 'data_readers_cpu.json'
  data_readers.main([f'--clean_dir={clean}', f'--polyu_dir={polyu}', *size, f'--json={output}'])
  content = json.loads(output.read_text())
  assert [(r['data'], r['reader'], r['crops_per_image']) for r in content['rows']] == [
    (data, *reader) for data in ('clean', 'polyu') for reader in READERS
  ]
  assert all(row['patches_per_second'] > 0 for row in content['rows'])
  assert content['command'].startswith('python benchmarks/data_readers.py --clean_dir clean ')
  assert '| polyu, `tiles`, 4 per decoded image |' in capsys.readouterr().out
