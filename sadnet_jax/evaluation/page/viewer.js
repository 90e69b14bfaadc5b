// Compares two pictures of one image by a divider that can be dragged; with zoom.

'use strict';

const ROLES = ['noisy', 'denoised', 'clean'];
const PAIRS = [['noisy', 'denoised'], ['denoised', 'clean'], ['noisy', 'clean']];
const MAX_ZOOM = 8;
// Steps of the keys, as fractions of the view.
const PAN_STEP = 0.25, SLIDE_STEP = 0.02, SLIDE_PAGE = 0.1;
// A finger that moves this far sideways drags the divider instead of scrolling the page; screen pixels.
const SIDEWAYS_PX = 8;

function button(text, act, label) {
  const made = element('button', { type: 'button', 'aria-label': label }, text);
  made.addEventListener('click', act);
  return made;
}

function group(label, ...children) {
  return element('div', { class: 'group', role: 'group', 'aria-label': label }, children);
}

// Positions are fractions of the view, so that its size does not matter.
class Viewer {
  at = 0.5; // Position of the divider.
  zoom = 1;
  x = 0; // Position of the top left corner of the picture; 1 - zoom to 0.
  y = 0;

  // card: as described by write_page; pictures: the URLs of all pictures.
  constructor(card, pictures) {
    this.card = card;
    const roles = ROLES.filter((role) => card[role] != null);
    this.pairs = PAIRS.filter((pair) => pair.every((role) => roles.includes(role)));
    this.layers = new Map(roles.map((role) => [role, this.makeLayer(role, pictures[card[role]])]));
    this.divider = element('div', {
      class: 'divider', role: 'slider', tabindex: 0,
      'aria-orientation': 'horizontal', 'aria-valuemin': 0, 'aria-valuemax': 100,
    });
    this.view = element('div', { class: 'view' }, ...this.layers.values(), this.divider);
    // At most a whole multiple of the picture's size, so that all its pixels have the same size.
    const [, , height, width] = card.box;
    const multiple = Math.max(1, Math.floor(500 / Math.max(width, height)));
    this.view.classList.toggle('magnified', multiple > 1);
    this.view.style.cssText = `aspect-ratio: ${width} / ${height}; max-width: ${width * multiple}px`;
    this.makeTools();
    this.listen();
    this.show(this.pairs[0]);
  }

  makeLayer(role, source) {
    const image = element('img', {
      src: source, alt: `${title(role)} ${this.card.name}`,
      draggable: 'false', decoding: 'async', loading: 'lazy',
    });
    const label = element('span', { 'aria-hidden': 'true' }, title(role));
    return element('div', { class: 'layer' }, image, label);
  }

  makeTools() {
    this.choices = this.pairs.map((pair) =>
      button(pair.map(title).join(' | '), () => this.show(pair), `Compare ${pair.join(' and ')}`));
    this.level = element('span', { class: 'level' });
    this.crop = element('span', { class: 'crop' });
    this.less = button('−', () => this.zoomAt(this.zoom / 2), 'Zoom out');
    this.more = button('+', () => this.zoomAt(this.zoom * 2), 'Zoom in');
    this.reset = button('Reset', () => this.zoomAt(1), 'Show the whole picture');
    this.tools = element('div', { class: 'tools' },
      this.choices.length > 1 ? group('Pictures to compare', this.choices) : element('span'),
      group('Zoom', this.less, this.level, this.more, this.reset),
      this.crop);
  }

  // ---- what is shown

  show(pair) {
    this.pair = pair;
    for (const [role, layer] of this.layers) {
      layer.classList.toggle('left', role === pair[0]);
      layer.classList.toggle('right', role === pair[1]);
    }
    this.choices.forEach((choice, i) => choice.setAttribute('aria-pressed', this.pairs[i] === pair));
    this.divider.setAttribute('aria-label', `Divider between ${pair.join(' and ')}, ${this.card.name}`);
    this.render();
  }

  slide(at) {
    this.at = clamp(at, 0, 1);
    this.render();
  }

  pan(x, y) {
    this.x = clamp(x, 1 - this.zoom, 0);
    this.y = clamp(y, 1 - this.zoom, 0);
    this.render();
  }

  // The point (across, down) of the view stays where it is.
  zoomAt(zoom, across = 0.5, down = 0.5) {
    const before = this.zoom;
    this.zoom = clamp(zoom, 1, MAX_ZOOM);
    const ratio = this.zoom / before;
    this.pan(across - (across - this.x) * ratio, down - (down - this.y) * ratio);
  }

  render() {
    const percent = Math.round(this.at * 100), [left, right] = this.pair;
    this.divider.style.left = `${this.at * 100}%`;
    this.divider.setAttribute('aria-valuenow', percent);
    this.divider.setAttribute('aria-valuetext', `${percent}% ${left}, ${100 - percent}% ${right}`);
    const transform = `translate(${this.x * 100}%, ${this.y * 100}%) scale(${this.zoom})`;
    for (const [role, layer] of this.layers) {
      layer.style.clipPath = role === left ? `inset(0 ${(1 - this.at) * 100}% 0 0)` : 'none';
      layer.firstChild.style.transform = transform;
    }
    this.view.classList.toggle('zoomed', this.zoom > 1);
    this.level.textContent = `${Number(this.zoom.toFixed(1))}x`;
    this.less.disabled = this.reset.disabled = this.zoom === 1;
    this.more.disabled = this.zoom === MAX_ZOOM;
    this.crop.textContent = this.visibleCrop();
  }

  // The first and last pixels of the image in view.
  visibleCrop() {
    const { box: [top, left, height, width], height: rows, width: columns } = this.card;
    const span = (first, offset, size) => {
      const from = first + Math.floor((-offset / this.zoom) * size + 1e-6);
      const to = first + Math.ceil(((1 - offset) / this.zoom) * size - 1e-6) - 1;
      return `${from} to ${to}`;
    };
    const whole = height === rows && width === columns;
    return `Columns ${span(left, this.x, width)}, rows ${span(top, this.y, height)} of ${columns}x${rows}` +
      (whole ? '' : ', of which this page has the middle');
  }

  // ---- what the user does

  listen() {
    // Keeps the focus and selects nothing.
    this.view.addEventListener('mousedown', (event) => event.preventDefault());
    this.view.addEventListener('pointerdown', (event) => this.grab(event));
    this.view.addEventListener('pointermove', (event) => this.drag(event));
    for (const type of ['pointerup', 'pointercancel', 'lostpointercapture']) {
      this.view.addEventListener(type, (event) => this.release(event));
    }
    this.view.addEventListener('dblclick', (event) => {
      this.zoomAt(this.zoom < MAX_ZOOM ? this.zoom * 2 : 1, ...this.point(event));
    });
    this.view.addEventListener('wheel', (event) => this.wheel(event), { passive: false });
    this.divider.addEventListener('keydown', (event) => this.key(event));
  }

  point(event) {
    const { left, top, width, height } = this.view.getBoundingClientRect();
    return [(event.clientX - left) / width, (event.clientY - top) / height];
  }

  grab(event) {
    if (event.button || this.held) return;
    const onDivider = this.divider.contains(event.target);
    const slides = onDivider || this.zoom === 1;
    const from = this.point(event);
    const start = slides ? this.at : [this.x, this.y];
    this.held = { id: event.pointerId, slides, from, start, before: this.at, waits: false };
    this.view.setPointerCapture(event.pointerId);
    this.view.classList.toggle('panning', !slides);
    this.divider.focus({ preventScroll: true });
    if (!slides || onDivider) return;
    // The divider jumps to the pointer. A finger has to move sideways first: it may want to scroll the page.
    this.held.start = from[0];
    this.held.waits = event.pointerType === 'touch';
    if (!this.held.waits) this.slide(from[0]);
  }

  drag(event) {
    const { held } = this;
    if (held?.id !== event.pointerId) return;
    const [across, down] = this.point(event).map((value, i) => value - held.from[i]);
    held.waits &&= Math.abs(across) * this.view.clientWidth < SIDEWAYS_PX;
    if (held.waits) return;
    if (held.slides) this.slide(held.start + across);
    else this.pan(held.start[0] + across, held.start[1] + down);
  }

  release(event) {
    if (this.held?.id !== event.pointerId) return;
    if (event.type === 'pointercancel' && this.held.slides) this.slide(this.held.before);
    this.held = null;
    this.view.classList.remove('panning');
  }

  // Over a picture without the focus the wheel scrolls the page.
  wheel(event) {
    const asked = event.ctrlKey || event.metaKey;
    if (!asked && document.activeElement !== this.divider) return;
    const pixels = event.deltaY * (event.deltaMode ? 16 : 1);
    const zoom = clamp(this.zoom * 2 ** (-pixels / 120), 1, MAX_ZOOM);
    if (!asked && zoom === this.zoom) return;
    event.preventDefault();
    this.zoomAt(zoom, ...this.point(event));
  }

  key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const actions = { ...(event.shiftKey ? this.panKeys() : this.slideKeys()), ...this.zoomKeys() };
    if (!Object.hasOwn(actions, event.key)) return;
    event.preventDefault();
    actions[event.key]();
  }

  panKeys() {
    return {
      ArrowLeft: () => this.pan(this.x + PAN_STEP, this.y),
      ArrowRight: () => this.pan(this.x - PAN_STEP, this.y),
      ArrowUp: () => this.pan(this.x, this.y + PAN_STEP),
      ArrowDown: () => this.pan(this.x, this.y - PAN_STEP),
    };
  }

  slideKeys() {
    const by = (step) => () => this.slide(this.at + step);
    return {
      ArrowLeft: by(-SLIDE_STEP), ArrowRight: by(SLIDE_STEP),
      ArrowDown: by(-SLIDE_STEP), ArrowUp: by(SLIDE_STEP),
      PageDown: by(-SLIDE_PAGE), PageUp: by(SLIDE_PAGE),
      Home: () => this.slide(0), End: () => this.slide(1),
    };
  }

  zoomKeys() {
    const more = () => this.zoomAt(this.zoom * 2);
    return { '+': more, '=': more, '-': () => this.zoomAt(this.zoom / 2), 0: () => this.zoomAt(1) };
  }
}
