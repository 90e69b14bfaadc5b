"""Hooks of MkDocs: pages that live elsewhere in the repository, and links that work on the site too.

README.md is the home page; CHANGELOG.md, CONTRIBUTING.md and the cards of the published weights are
pages too. In Markdown, links are written for GitHub, relative to the file they stand in. Here, links to
pages of the site are turned to those pages; links to other files of the repository, which the site does
not have, become plain text; broken links stay, and MkDocs reports them.
"""

from pathlib import Path
import posixpath
import re

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
CARDS = 'sadnet_jax/weights/pretrained'
# File of the repository -> page of the site.
PAGES = {'README.md': 'index.md', 'CHANGELOG.md': 'changelog.md', 'CONTRIBUTING.md': 'contributing.md'}
PAGES |= {f'{CARDS}/{path.name}': f'cards/{path.name}' for path in sorted((ROOT / CARDS).glob('*.md'))}
SOURCES = {page: source for source, page in PAGES.items()}
LINK = re.compile(r'(!?)\[((?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*)\]\(([^)\s]+)\)')


def on_config(config):
  """Puts the cards below "Weights" in the navigation."""
  use = next(section['Use'] for section in config.nav if 'Use' in section)
  weights = next(section['Weights'] for section in use if 'Weights' in section)
  weights += [{Path(page).stem: page} for page in PAGES.values() if page.startswith('cards/')]
  return config


def on_files(files, config):
  """Adds the pages whose text is outside docs/."""
  for source, page in PAGES.items():
    files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding='utf-8')))
  return files


def on_page_markdown(markdown, page, config, files):
  """Turns the page's links to the site's; hides the table of contents of a page without sections."""
  if not re.search('^## ', markdown, re.MULTILINE):
    page.meta['hide'] = ['toc']
  here = page.file.src_uri
  source = SOURCES.get(here, f'docs/{here}')
  return rewrite_links(markdown, source, here)


def rewrite_links(markdown: str, source: str, page: str) -> str:
  """Links relative to ``source``, a file of the repository, as links relative to ``page``, of the site."""

  def rewrite(match):
    image, text, target = match.groups()
    path, hash_sign, anchor = target.partition('#')
    if not path or re.match(r'[a-z]+:', path):
      return match[0]
    file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if file in PAGES:
      there = PAGES[file]
    elif file.startswith('docs/'):
      there = file.removeprefix('docs/')
    else:
      return text if (ROOT / file).exists() else match[0]
    return f'{image}[{text}]({posixpath.relpath(there, posixpath.dirname(page) or ".")}{hash_sign}{anchor})'

  return LINK.sub(rewrite, markdown)
