// The page: a summary of all results, each result, and the submissions.

'use strict';

// ---- pictures

const GROUPS = { worst: 'Lowest PSNR', best: 'Highest PSNR' };

function figure(card, id, image) {
  const viewer = new Viewer(card, content.pictures);
  const numbers = image && [
    ['PSNR', change(image.psnr_noisy, image.psnr, 2), ' dB'],
    ['SSIM (Wang)', change(image.ssim_wang_noisy, image.ssim_wang, 4)],
    ['SSIM (MATLAB)', change(image.ssim_matlab_noisy, image.ssim_matlab, 4)],
  ].map(([label, ...values]) => element('span', {}, `${label} `, values));
  const group = GROUPS[card.group];
  return element('figure', { class: 'sheet', id },
    element('div', { class: 'stage' }, viewer.view),
    viewer.tools,
    element('figcaption', {},
      element('span', { class: 'name' }, card.name),
      group ? element('span', { class: `extreme ${card.group}` }, group) : null,
      numbers ? element('span', { class: 'numbers' }, numbers) : null));
}

function gallery({ images, cards }, id, figures) {
  if (!cards.length) return null;
  const byName = new Map(figures.map((image) => [image.name, image]));
  const order = cards[0].group in GROUPS ? ', from the lowest PSNR to the highest' : '';
  const shown = cards.length < images ? `: ${cards.length} of ${images}` : '';
  return [
    element('h3', {}, `Pictures${order}${shown}`),
    element('p', { class: 'small hint' },
      'Drag the divider, or focus it and press ← →. Zoom with a double click, the buttons, + and −, or the ' +
      'wheel once you have clicked a picture; then drag, or press Shift with an arrow, to move the crop.'),
    element('div', { class: 'cards' },
      cards.map((card, i) => figure(card, `card-${id}-${i}`, byName.get(card.name)))),
  ];
}

function aboutPictures() {
  if (!content.pictures.length) return null;
  const limit = content.cut_to_mb == null ? '' :
    ` Fewer images than requested are shown, to keep the page within ${content.cut_to_mb} MB.`;
  return element('section', { class: 'small' }, `Pictures: lossless WebP, 8 bits per channel.${limit}`);
}

// ---- a result

function tile(label, value, unit, detail) {
  return element('div', { class: 'sheet tile' },
    element('div', { class: 'label' }, label),
    element('div', { class: 'value' }, value, unit ? element('span', { class: 'unit' }, ` ${unit}`) : null),
    element('div', { class: 'detail' }, detail));
}

function tiles(result) {
  const means = mean(result), published = counterpart(result);
  const noisy = fixed(means.psnr_noisy, 2), gain = difference(means.psnr, means.psnr_noisy, 2);
  return element('div', { class: 'tiles' },
    tile('PSNR', fixed(means.psnr, 2), 'dB', `from ${noisy}, ${gain}`),
    tile('SSIM (Wang)', fixed(means.ssim_wang, 4), '', `from ${fixed(means.ssim_wang_noisy, 4)}`),
    tile('SSIM (MATLAB)', fixed(means.ssim_matlab, 4), '', `from ${fixed(means.ssim_matlab_noisy, 4)}`),
    tile('Time per image', duration(means.seconds), 's', count(result.images.length, 'image')),
    published && tile(
      `Against ${published.method}`, versusWithNote(published, result), 'dB', `from ${fixed(published.psnr, 2)}`));
}

// All images by PSNR; those with pictures are links.
function strip(result, index) {
  const { cards } = showcase(index);
  const known = result.images.filter((image) => Number.isFinite(image.psnr));
  if (known.length < 3) return null;
  const values = known.map((image) => image.psnr), low = Math.min(...values), high = Math.max(...values);
  const position = (value) => `left: ${high > low ? ((value - low) / (high - low)) * 100 : 50}%`;
  const marks = known.map((image) => {
    const i = cards.findIndex((card) => card.name === image.name);
    const text = `${image.name}: ${fixed(image.psnr, 2)} dB`;
    const mark = { style: position(image.psnr), title: text };
    if (i < 0) return element('i', mark);
    const link = { 'aria-label': text, href: `#card-${index}-${i}`, class: cards[i].group };
    return element('a', { ...mark, ...link });
  });
  const center = mean(result).psnr;
  if (Number.isFinite(center)) {
    marks.push(element('i', { class: 'mean', style: position(center) }));
    marks.push(element('span', { style: position(center) }, `mean ${fixed(center, 2)}`));
  }
  const ends = [`${fixed(low, 2)} dB`, `${fixed(high, 2)} dB`];
  const label = `PSNR of ${known.length} images, from ${fixed(low, 2)} to ${fixed(high, 2)} dB`;
  return element('div', {},
    element('h3', {}, 'PSNR of each image', cards.length ? '; those in colour are shown below' : ''),
    element('div', { class: 'strip', role: 'group', 'aria-label': label }, marks),
    element('div', { class: 'ends' }, ends.map((end) => element('span', {}, end))));
}

function remarks(notes, id) {
  return notes?.length ? element('div', { class: 'remarks', id }, list(notes)) : null;
}

function failureList(failures, id, text) {
  if (!failures?.length) return null;
  const lines = failures.map(({ name, error }) => {
    if (!error) return name;
    return error.startsWith(name) ? error : `${name}: ${error}`;
  });
  return element('div', { class: 'failures bad', id }, element('h3', {}, text), list(lines));
}

// Failures of whole sets and submissions.
function otherFailures() {
  const key = ({ name, error }) => JSON.stringify([name, error]);
  const listed = new Set(content.results.flatMap((result) => result.failures ?? []).map(key));
  return (content.failures ?? []).filter((failure) => !listed.has(key(failure)));
}

function resultSection(result, index) {
  const shown = showcase(index), failures = result.failures ?? [], failed = count(failures.length, 'image');
  const about = [result.version, result.protocol_text].filter(Boolean).map((text) => `${title(text)}. `);
  const clipped = result.protocol === 'unclipped' && shown.cards.length
    ? 'Under this protocol noisy values exceed black and white; the pictures are clipped.' : null;
  return element('section', { class: 'result', id: `result-${index}`, 'aria-labelledby': `title-${index}` },
    element('h2', { id: `title-${index}` }, heading(result),
      element('span', { class: 'muted' }, ` ${methodName(result.method)}, ${result.protocol}`)),
    element('p', { class: 'muted' }, about),
    facts({ ...result.method, name: null }),
    remarks(result.notes, `remarks-${index}`),
    tiles(result),
    failureList(failures, `failures-${index}`, `${failed} failed, not included in the results`),
    strip(result, index),
    gallery(shown, index, result.images),
    clipped ? element('p', { class: 'small hint' }, clipped) : null,
    result.images.length ? [element('h3', {}, 'All images'), imageTable(result, index)] : null,
    publishedTable(result));
}

// ---- a submission

function submissionSection(submission, index) {
  const { method, files, checks, seconds } = submission;
  const noTruth = 'The ground truth is not public; these files are the result';
  const about = [methodName(method), submission.version, noTruth];
  const written = Array.isArray(files)
    ? [element('h3', {}, 'Written'), list(files.map((file) => element('code', {}, file)))]
    : element('p', {}, count(files, 'file'));
  const measured = {
    'context around each box in pixels': submission.margin_px,
    'seconds in total': seconds == null ? null : duration(seconds),
  };
  return element('section', { class: 'submission', 'aria-labelledby': `submission-${index}` },
    element('h2', { id: `submission-${index}` }, `${submission.title}, submission`),
    element('p', { class: 'muted' }, about.filter(Boolean).map((text) => `${text}. `)),
    facts({ ...method, name: null, ...measured }),
    written,
    checks?.length ? [element('h3', {}, 'Checked'), list(checks)] : null,
    gallery(showcase(content.results.length + index), `submission-${index}`, []));
}

// ---- the whole page

function pageHeader(names, methods) {
  const words = content.command.split(' ').map((word, i) => [i ? ' ' : '', element('span', {}, word)]);
  return element('header', {},
    element('h1', {}, 'Denoising results'),
    element('p', { class: 'lede' }, `${methods.join(', ')} on ${names.join('; ')}`),
    element('pre', {}, words),
    facts(content.environment ?? {}));
}

function build() {
  const submissions = content.submissions ?? [];
  const names = [...content.results.map(heading), ...submissions.map((submission) => submission.title)];
  const methods = [...content.results, ...submissions].map(({ method }) => methodName(method));
  const unique = (texts) => [...new Set(texts)];
  document.title = `Denoising results: ${unique(names).join('; ')}`;
  const parts = [
    pageHeader(unique(names), unique(methods)),
    failureList(otherFailures(), 'failures', 'Failed completely'),
    content.results.length ? summary() : null,
    ...content.results.map(resultSection),
    ...submissions.map(submissionSection),
    aboutPictures(),
  ];
  document.querySelector('main').append(...parts.filter(Boolean));
  const lines = footnotes.map((text, i) => element('li', { id: `note-${i + 1}` }, text));
  document.getElementById('notes')?.append(...lines);
}

build();
