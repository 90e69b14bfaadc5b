"""What sadnet-denoise says on stderr: one line, whatever is in it."""

import sys

COMMAND = 'sadnet-denoise'
_LONGEST = 600


def tell(text: str) -> None:
  """Prints an error."""
  print(f'{COMMAND}: {one_line(text)}', file=sys.stderr, flush=True)


def one_line(text: str) -> str:
  """A text without line ends and control characters, cut off where it is very long."""
  line = ' '.join(''.join(c if c.isprintable() else ' ' for c in text).split())
  return line if len(line) <= _LONGEST else f'{line[:_LONGEST]}...'
