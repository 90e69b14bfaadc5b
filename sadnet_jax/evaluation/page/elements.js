// Building blocks of the page: elements, and numbers, names and facts as text.

'use strict';

const content = JSON.parse(document.getElementById('content').textContent);
const NONE = '–';

// Elements are made from text, never from markup: names of images may contain anything.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value != null) made.setAttribute(name, value);
  }
  made.append(...children.flat(Infinity).filter((child) => child != null));
  return made;
}

// A smaller line below the previous one.
const below = (text) => (text ? element('span', { class: 'small' }, text) : null);

const list = (lines) => element('ul', {}, lines.map((line) => element('li', {}, line)));

// A table that scrolls in its own frame if it is too wide, also by keyboard.
function sheet(label, style, table) {
  const names = style ? `sheet scroll ${style}` : 'sheet scroll';
  return element('div', { class: names, tabindex: 0, role: 'region', 'aria-label': label }, table);
}

const header = (label, isNumber) =>
  element('th', { scope: 'col', class: isNumber ? 'number' : null }, label);

// ---- numbers

function fixed(value, digits) {
  if (value == null) return NONE;
  const number = Number(value); // 'NaN' and 'Infinity' come as strings.
  if (Number.isNaN(number)) return 'NaN';
  if (!Number.isFinite(number)) return number > 0 ? '∞' : '−∞';
  return number.toFixed(digits).replace('-', '−');
}

function difference(value, from, digits) {
  if (value == null || from == null || !Number.isFinite(value - from)) return NONE;
  const text = fixed(value - from, digits);
  if (!/[1-9]/.test(text)) return `±${fixed(0, digits)}`;
  return text.startsWith('−') ? text : `+${text}`;
}

// Three digits, and no zero for a short time.
function duration(seconds) {
  if (seconds > 0 && seconds < 0.0005) return '< 0.001';
  return fixed(seconds, seconds < 1 ? 3 : seconds < 10 ? 2 : seconds < 100 ? 1 : 0);
}

const count = (number, noun) => `${number} ${noun}${number === 1 ? '' : 's'}`;

const change = (before, after, digits) => [
  `${fixed(before, digits)} → `,
  element('b', {}, fixed(after, digits)),
];

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

// ---- names

const METHODS = new Map([['sadnet', 'SADNet'], ['bm3d', 'BM3D'], ['noisy', 'Noisy input']]);

const title = (word) => word[0].toUpperCase() + word.slice(1);
const methodName = (method) => METHODS.get(method.name) ?? method.name;

function methodDetail({ config, step, version }) {
  const parts = [config, step == null ? null : `step ${step}`, version && `version ${version}`];
  return parts.filter(Boolean).join(', ');
}

// ---- results

const noise = (result) => (result.sigma_255 == null ? 'real noise' : `σ ${result.sigma_255}`);
const heading = (result) => `${result.title}, ${noise(result)}`;
const mean = (result) => result.mean ?? {};
// The number of images of a result or submission, and the cards of those that are shown.
const showcase = (index) => content.showcases[index] ?? { images: 0, cards: [] };

// ---- facts

function fact(value) {
  if (Array.isArray(value)) return value.join(', ');
  return `${typeof value === 'number' && !Number.isInteger(value) ? Number(value.toPrecision(3)) : value}`;
}

// Nested groups, such as the versions of packages, are listed without their group.
function flat(object) {
  return Object.entries(object).flatMap(([key, value]) => {
    if (value?.constructor === Object) return flat(value);
    return value == null ? [] : [[key, fact(value)]];
  });
}

function facts(object) {
  const pairs = flat(object).map(([key, value]) => {
    const isHash = /^[0-9a-f]{40,}$/.test(value);
    const shown = isHash ? `${value.slice(0, 12)}…` : value;
    return element('div', {},
      element('dt', {}, key),
      element('dd', { title: isHash ? value : null }, shown));
  });
  return element('dl', { class: 'facts' }, pairs);
}
