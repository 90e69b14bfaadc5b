"""The rules of docs/architecture.md, checked on the imports of the code as it is."""

import ast
import functools
import graphlib
import sys

import pytest

from tests.support.command import ROOT, finish, start

# Room -> what it may import of the package: whole rooms, or single modules.
MAY_IMPORT = {
  'ops': set(),
  'nn': {'ops'},
  'images': {'files', 'machine'},
  'data': {'images', 'files', 'machine'},
  'weights': {'nn', 'files'},
  'denoise': {'ops.platform', 'nn', 'weights', 'images', 'files', 'machine'},
  'evaluation': {'data', 'images', 'nn', 'denoise', 'files', 'machine'},
  'training': {'ops.platform', 'nn', 'data', 'images', 'weights', 'evaluation', 'denoise', 'files'},
}
CODE = ('sadnet_jax', 'tools', 'benchmarks', 'configs', 'examples')


def _files(*folders):
  found = [path for folder in folders for path in (ROOT / folder).rglob('*.py')]
  return found + ([ROOT / 'train.py', ROOT / 'evaluate.py'] if 'configs' in folders else [])


def _module(path):
  parts = path.relative_to(ROOT).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def _exists(module):
  path = ROOT.joinpath(*module.split('.'))
  return path.with_suffix('.py').is_file() or path.is_dir()


def _for_types_only(tree):
  """Nodes below ``if TYPE_CHECKING:``."""
  guarded = [n for n in ast.walk(tree) if isinstance(n, ast.If) and 'TYPE_CHECKING' in ast.unparse(n.test)]
  return {id(node) for block in guarded for statement in block.body for node in ast.walk(statement)}


@functools.cache
def _imports(path):
  """(imported module, name or None) of every import statement that runs, also inside functions."""
  tree = ast.parse(path.read_text())
  skipped = _for_types_only(tree)
  found = set()
  for node in ast.walk(tree):
    if id(node) in skipped:
      continue
    if isinstance(node, ast.Import):
      found |= {(alias.name, None) for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      for alias in node.names:
        name = f'{node.module}.{alias.name}'
        inside = node.module.split('.')[0] in (*CODE, 'tests') and _exists(name)
        found.add((name, None) if inside else (node.module, alias.name))
  return frozenset(found)


def _graph(paths):
  modules = {_module(path) for path in paths}
  return {_module(path): {m for m, _ in _imports(path) if m in modules} for path in paths}


def test_every_room_has_its_rule():
  rooms = {path.parent.name for path in (ROOT / 'sadnet_jax').glob('*/__init__.py')}
  assert rooms == set(MAY_IMPORT)


def test_rooms_import_only_what_they_may():
  wrong = []
  for room, allowed in MAY_IMPORT.items():
    for path in _files(f'sadnet_jax/{room}'):
      for module, _ in _imports(path):
        head, _, rest = module.partition('.')
        if head != 'sadnet_jax' or rest.split('.')[0] == room:
          continue
        # Without a rest, names of the package itself, which come from rooms that may be higher.
        if not any(rest == name or rest.startswith(f'{name}.') for name in allowed):
          wrong.append(f'{_module(path)} imports {module}')
  assert not wrong, '\n'.join(wrong)


def test_the_package_imports_nothing_from_the_scripts_around_it():
  outside = {'tools', 'benchmarks', 'configs', 'tests', 'train', 'evaluate'}
  wrong = [
    f'{_module(path)} imports {module}'
    for path in _files('sadnet_jax')
    for module, _ in _imports(path)
    if module.split('.')[0] in outside
  ]
  assert not wrong, '\n'.join(wrong)


def test_imports_have_no_circle():
  graph = _graph(_files(*CODE))
  # A package's own __init__ names its modules; importing a module runs it first.
  graphlib.TopologicalSorter(graph).prepare()


def test_ops_need_jax_and_numpy_alone():
  allowed = {'jax', 'numpy', 'sadnet_jax'}
  for path in _files('sadnet_jax/ops'):
    modules = {module.split('.')[0] for module, _ in _imports(path)}
    outside = {m for m in modules if m not in allowed and m not in sys.stdlib_module_names}
    assert not outside, _module(path)


def test_configs_stop_in_training():
  users = {
    _module(p) for p in _files('sadnet_jax') if any(m.startswith('ml_collections') for m, _ in _imports(p))
  }
  where = {f'sadnet_jax.training.{name}' for name in ('loop', 'inputs', 'state', 'config')}
  assert users == where | {'sadnet_jax.command_line'}


def _private_uses(path):
  """Names with a leading underscore that a file takes from another one."""
  tree = ast.parse(path.read_text())
  aliases = {}
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] in (*CODE, 'tests'):
      for alias in node.names:
        if _is_private(alias.name):
          yield f'line {node.lineno}: {node.module}.{alias.name}'
        if _exists(f'{node.module}.{alias.name}'):
          aliases[alias.asname or alias.name] = f'{node.module}.{alias.name}'
  for node in ast.walk(tree):
    owner, name = None, None
    if isinstance(node, ast.Attribute):
      owner, name = node.value, node.attr
    elif (
      isinstance(node, ast.Call)
      and isinstance(node.func, ast.Attribute)
      and node.func.attr in ('setattr', 'object')
      and len(node.args) > 1
    ):
      owner, name = node.args[0], getattr(node.args[1], 'value', None)
    if isinstance(owner, ast.Name) and owner.id in aliases and _is_private(name):
      yield f'line {node.lineno}: {aliases[owner.id]}.{name}'


def _is_private(name):
  return isinstance(name, str) and name.startswith('_') and not name.startswith('__')


def test_no_private_name_crosses_a_file():
  wrong = [f'{_module(p)}, {use}' for p in _files(*CODE, 'tests') for use in _private_uses(p)]
  assert not wrong, '\n'.join(wrong)


@pytest.mark.parametrize(
  ('code', 'absent'),
  [
    ('import sadnet_jax', ['jax', 'numpy', 'tensorflow', 'torch']),
    ('import sadnet_jax.images.reading, sadnet_jax.images.writing, sadnet_jax.images.arrays', ['jax']),
    (
      'from sadnet_jax import *; from sadnet_jax import pretrained; import sadnet_jax.denoise.app',
      ['tensorflow', 'torch', 'orbax', 'optax', 'gradio'],
    ),
    ('import sadnet_jax.training.loop', ['tensorflow', 'torch']),
  ],
)
def test_importing_does_not_import(code, absent):
  check = f'import sys; {code}; print(sorted(set({absent}) & set(sys.modules)))'
  output, _ = finish(start('-c', check))
  assert output.strip() == '[]'
