"""Every reader is timed, and the page takes what the script writes."""

import json

from benchmarks import data_readers, performance_tables, report
from tests.support import dataset_files

READERS = [('files', 1), ('files', 4), ('tiles', 1), ('tiles', 4), ('memory', 1)]


def test_the_page_shows_what_is_written(tmp_path, monkeypatch):
  monkeypatch.setattr(data_readers, 'WARM_UP_SECONDS', 0.01)
  clean, polyu = tmp_path / 'clean', tmp_path / 'polyu'
  for i in range(3):
    dataset_files.write(clean / f'{i}.png', dataset_files.picture(48, 64, i))
  dataset_files.polyu(polyu)
  size = ['--patch_px=16', '--batch_size=2', '--seconds=0.01']
  output = tmp_path / 'input_pipeline_cpu.json'
  data_readers.main([f'--clean_dir={clean}', f'--polyu_dir={polyu}', *size, f'--json={output}'])
  content = json.loads(output.read_text())
  assert [(r['data'], r['reader'], r['crops_per_image']) for r in content['rows']] == [
    (data, *reader) for data in ('clean', 'polyu') for reader in READERS
  ]
  assert all(row['patches_per_second'] > 0 for row in content['rows'])
  (section,) = (s for s in report.SECTIONS if s.stem == 'input_pipeline')
  assert section.needs <= set(content)
  assert section.command(content).startswith(f'python benchmarks/input_pipeline.py --clean_dir {clean} ')
  assert len(performance_tables.input_pipeline(content)) == 4 + len(content['rows'])
