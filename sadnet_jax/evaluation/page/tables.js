// The tables: a summary of all results, published results, all images of a result.

'use strict';

const footnotes = [];

// ---- published results

// The published result of the same method.
function counterpart(result) {
  return (result.published ?? []).find((row) => row.method === result.compared_with);
}

function footnote(text) {
  if (!footnotes.includes(text)) footnotes.push(text);
  const number = footnotes.indexOf(text) + 1;
  const link = element('a', { href: `#note-${number}`, 'aria-label': `Footnote ${number}` }, `${number}`);
  return element('sup', {}, link);
}

const versus = (published, result) => difference(mean(result).psnr, published.psnr, 2);

// The difference, with a footnote if protocol or images differ as well.
function versusWithNote(published, result) {
  const text = versus(published, result);
  if (text === NONE || !published.differs?.length) return [text];
  const other = `${published.method} on ${heading(result)} was published for: ${published.differs.join('; ')}`;
  return [text, footnote(`${other}. The difference is not due to the denoisers alone.`)];
}

function publishedTable(result) {
  if (!result.published?.length) return null;
  const columns = [
    ['Method', (row) => row.method],
    ['PSNR in dB', (row) => fixed(row.psnr, 2), true],
    ['SSIM as published', (row) => fixed(row.ssim, 4), true],
    ['Protocol', (row) => row.protocols?.join(' or ') || NONE],
    ['Ours − published, dB', (row) => versus(row, result), true],
    ['Measured on', (row) => row.differs?.join('; ')],
  ];
  const rows = result.published.map((row) => element('tr', {}, columns.map(([, text, isNumber], i) =>
    i ? element('td', { class: isNumber ? 'number' : null }, text(row))
      : element('th', { scope: 'row' }, text(row)))));
  const heads = element('tr', {}, columns.map(([label, , isNumber]) => header(label, isNumber)));
  const table = element('table', {}, element('thead', {}, heads), element('tbody', {}, rows));
  return [
    element('h3', {}, 'Published results'),
    sheet(`Published results on ${heading(result)}`, null, table),
  ];
}

// ---- the summary

const rise = (before, after) => [element('b', {}, fixed(after, 4)), below(`from ${fixed(before, 4)}`)];

const SUMMARY = [
  ['Noise and protocol', (result) => [noise(result), below(result.protocol)]],
  ['Method', ({ method }) => [methodName(method), below(methodDetail(method))]],
  ['PSNR in dB', (result) => change(mean(result).psnr_noisy, mean(result).psnr, 2)],
  ['SSIM (Wang)', (result) => rise(mean(result).ssim_wang_noisy, mean(result).ssim_wang)],
  ['SSIM (MATLAB)', (result) => rise(mean(result).ssim_matlab_noisy, mean(result).ssim_matlab)],
  ['Seconds per image', (result) => duration(mean(result).seconds)],
  ['Published PSNR', (result) => {
    const published = counterpart(result);
    return published ? [fixed(published.psnr, 2), below(published.method)] : NONE;
  }],
  ['Difference', (result) => (counterpart(result) ? versusWithNote(counterpart(result), result) : NONE)],
];

function summaryRow(result, index) {
  const failures = result.failures?.length, notes = result.notes?.length;
  const name = element('th', { scope: 'row' },
    element('a', { href: `#result-${index}` }, result.title),
    below(result.version),
    notes ? element('a', { class: 'small', href: `#remarks-${index}` }, count(notes, 'note')) : null,
    failures ? element('a', { class: 'small bad', href: `#failures-${index}` }, `${failures} failed`) : null);
  const cells = SUMMARY.map(([label, make], i) => {
    const attributes = { class: i > 1 ? 'number' : null, 'data-label': label };
    return element('td', attributes, element('span', {}, make(result)));
  });
  return element('tr', {}, name, cells);
}

function summary() {
  const heads = [header('Data set'), SUMMARY.map(([label], i) => header(label, i > 1))];
  const table = element('table', { class: 'summary' },
    element('thead', {}, element('tr', {}, heads)),
    element('tbody', {}, content.results.map(summaryRow)));
  return element('section', { 'aria-label': 'Summary' },
    sheet('Summary of all results', null, table),
    element('ol', { class: 'notes', id: 'notes' }),
    element('p', { class: 'small' },
      'PSNR and SSIM are means over all images, before and after denoising. SSIM (Wang): Gaussian window of ' +
      '11x11 in each channel, valid region. SSIM (MATLAB): window of 11x11x11 over height, width and ' +
      'channels, edges repeated. Values of the two conventions cannot be compared.'));
}

// ---- all images of a result

// Label, value to sort by, text.
const COLUMNS = [
  ['Image', (image) => image.name, (image) => image.name],
  ['Size', (image) => image.height * image.width, (image) => `${image.width}x${image.height}`],
  ['PSNR noisy', (image) => image.psnr_noisy, (image) => fixed(image.psnr_noisy, 2)],
  ['PSNR denoised', (image) => image.psnr, (image) => fixed(image.psnr, 2)],
  [
    'Gain in dB',
    (image) => (image.psnr == null ? null : image.psnr - image.psnr_noisy),
    (image) => difference(image.psnr, image.psnr_noisy, 2),
  ],
  [
    'SSIM (Wang)',
    (image) => image.ssim_wang,
    (image) => change(image.ssim_wang_noisy, image.ssim_wang, 4),
  ],
  [
    'SSIM (MATLAB)',
    (image) => image.ssim_matlab,
    (image) => change(image.ssim_matlab_noisy, image.ssim_matlab, 4),
  ],
  ['Seconds', (image) => image.seconds, (image) => duration(image.seconds)],
];

function compare(a, b) {
  const areNames = typeof a === 'string' && typeof b === 'string' && Number.isNaN(Number(a) + Number(b));
  return areNames ? a.localeCompare(b, 'en', { numeric: true }) : Number(a) - Number(b);
}

// Missing values and NaN come last in both directions.
function sorted(rows, value, descending) {
  const missing = (row) => value(row) == null || value(row) === 'NaN' || Number.isNaN(value(row));
  const known = rows.filter((row) => !missing(row));
  known.sort((a, b) => compare(value(a), value(b)) * (descending ? -1 : 1));
  return [...known, ...rows.filter(missing)];
}

function imageRow(image, link) {
  const name = link ? element('a', { href: link }, image.name) : image.name;
  const cells = COLUMNS.slice(1).map(([, , text]) => element('td', { class: 'number' }, text(image)));
  return element('tr', {}, element('th', { scope: 'row' }, name), cells);
}

function imageTable(result, index) {
  const { cards } = showcase(index);
  const links = new Map(cards.map((card, i) => [card.name, `#card-${index}-${i}`]));
  const rows = new Map(result.images.map((image) => [image, imageRow(image, links.get(image.name))]));
  const body = element('tbody', {}, ...rows.values());
  const heads = COLUMNS.map(([label, value], i) => {
    const head = header(button(label, () => {
      const descending = head.getAttribute('aria-sort') === 'ascending';
      for (const other of heads) other.removeAttribute('aria-sort');
      head.setAttribute('aria-sort', descending ? 'descending' : 'ascending');
      body.append(...sorted(result.images, value, descending).map((image) => rows.get(image)));
    }), i > 0);
    return head;
  });
  const table = element('table', {}, element('thead', {}, element('tr', {}, heads)), body);
  return sheet(`All images of ${heading(result)}`, 'images', table);
}
