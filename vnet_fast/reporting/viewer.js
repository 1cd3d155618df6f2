/* Scrolls through the cases of a report: three planes, and the contours of reference and predictions.
 *
 * An element `.viewer` has blocks of JSON, `.settings` and a `.case` for each option of its `select`, whose content
 * `pack` in viewer.py describes. Without this script, the element stays hidden, and the page has its pictures.
 */
"use strict";

// the axes (0 x to the left, 1 y to the back, 2 z to the head) that a plane shows from left to right and from top to
// bottom, and the one that it is moved along; the head is up
const PLANES = {
  axial: { across: 0, down: 1, along: 2, letters: ["R", "L", "A", "P"] },
  coronal: { across: 0, down: 2, along: 1, letters: ["R", "L", "S", "I"] },
  sagittal: { across: 1, down: 2, along: 0, letters: ["A", "P", "S", "I"] },
};
// where a position on an axis is, if it is positive, and if it is negative
const SIDES = ["LR", "PA", "SI"];
// of the lines of the reference and of each prediction, in pixels of the page
const DASHES = [[], [6, 4], [2, 3], [9, 3, 2, 3], [14, 4]];
const PAGE_OF_SLICES = 5;
// pixels of a mouse wheel, and of a finger, that move one slice; at least so many of a finger are no tap
const WHEEL_STEP = 40, FINGER_STEP = 8;
// milliseconds after the page was scrolled in which a turn of the wheel goes on scrolling it
const STILL_SCROLLING = 250;

// The border of what is inside runs through cells between four voxels, from the middle of one side (top, right,
// bottom, left) to that of another, with the inside on its right. The index is the sum of the corners that are inside:
// 1 top left, 2 top right, 4 bottom right, 8 bottom left.
const SIDE = { T: [2, 1], R: [3, 2], B: [2, 3], L: [1, 2] };
const BORDERS = ["", "TL", "RT", "RL", "BR", "TLBR", "BT", "BL", "LB", "TB", "RTLB", "RB", "LR", "TR", "LT", ""];

let lastScroll = -Infinity;
addEventListener("scroll", () => (lastScroll = performance.now()), { passive: true });

/** The closed borders of the voxels that are inside, as lists of points in half voxels.
 *
 * @param inside a function of column and row, which is false beyond the slice.
 */
function borders(inside, columns, rows) {
  const next = new Map(), stride = 2 * columns + 2, found = [];
  for (let row = -1; row < rows; row++) {
    for (let column = -1; column < columns; column++) {
      const corners = BORDERS[inside(column, row) + 2 * inside(column + 1, row)
        + 4 * inside(column + 1, row + 1) + 8 * inside(column, row + 1)];
      for (let i = 0; i < corners.length; i += 2) {
        const [from, to] = [SIDE[corners[i]], SIDE[corners[i + 1]]];
        next.set((2 * row + from[1]) * stride + 2 * column + from[0], (2 * row + to[1]) * stride + 2 * column + to[0]);
      }
    }
  }
  for (const first of next.keys()) {
    const border = [];
    for (let at = first; next.has(at);) {
      border.push([at % stride, Math.floor(at / stride)]);
      const to = next.get(at);
      next.delete(at);
      at = to;
    }
    found.push(border);
  }
  return found;
}

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

class Viewer {
  constructor(root) {
    this.root = root;
    this.settings = JSON.parse(root.querySelector(".settings").textContent);
    this.lookups = this.settings.classes.map(({ labels }) => Uint8Array.from({ length: 256 },
      (_, label) => labels.includes(label)));
    this.choice = root.querySelector("select");
    this.choice.addEventListener("change", () => this.show(this.choice.selectedIndex));
    this.sliders = ["brightness", "contrast"].map((name) => root.querySelector(`.${name}`));
    for (const input of root.querySelectorAll("input")) input.addEventListener("input", () => this.draw());
    root.querySelector(".reset").addEventListener("click", () => {
      for (const slider of this.sliders) slider.value = 0;
      this.draw();
    });
    this.planes = [...root.querySelectorAll("figure")].map((figure) => this.addPlane(figure));
    root.hidden = false;
    this.linkNames();
    this.show(0);
  }

  /** Makes the names in the table of cases lead to the viewer. */
  linkNames() {
    const names = [...this.choice.options].map((option) => option.value);
    for (const cell of document.querySelectorAll(".cases tbody th")) {
      const index = names.indexOf(cell.textContent), button = document.createElement("button");
      if (index < 0) continue;
      Object.assign(button, { type: "button", textContent: cell.textContent });
      button.addEventListener("click", () => {
        this.choice.selectedIndex = index;
        this.show(index);
        this.root.closest("section").scrollIntoView();
        this.planes[0].canvas.focus({ preventScroll: true });
      });
      cell.replaceChildren(button);
    }
  }

  /** Makes a canvas react to wheel, keys, mouse and finger. */
  addPlane(figure) {
    const canvas = figure.querySelector("canvas"), plane = { ...PLANES[figure.dataset.plane], figure, canvas, left: 0 };
    plane.pixels = document.createElement("canvas");
    canvas.addEventListener("keydown", (event) => this.onKey(event, plane));
    canvas.addEventListener("wheel", (event) => this.onWheel(event, plane), { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      plane.from = { x: event.clientX, y: event.clientY, slice: this.at?.[plane.along], moved: false };
      if (event.pointerType === "mouse") {
        canvas.setPointerCapture(event.pointerId);
        this.point(event, plane);
      }
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!plane.from || !event.buttons) return;
      if (event.pointerType === "mouse") return this.point(event, plane);
      const slices = Math.trunc((event.clientX - plane.from.x) / FINGER_STEP);
      plane.from.moved ||= slices !== 0;
      this.move(plane.along, plane.from.slice + slices);
    });
    canvas.addEventListener("pointerup", (event) => {
      if (plane.from && !plane.from.moved && event.pointerType !== "mouse") this.point(event, plane);
      plane.from = null;
    });
    canvas.addEventListener("pointercancel", () => (plane.from = null));
    new ResizeObserver(() => this.draw()).observe(canvas);
    return plane;
  }

  async show(index) {
    const content = JSON.parse(this.root.querySelectorAll(".case")[index].textContent);
    const packed = [content.image, ...content.masks].map((text) => text && unpack(text));
    const [image, ...masks] = await Promise.all(packed);
    // another case may have been chosen meanwhile
    if (index !== this.choice.selectedIndex) return;
    Object.assign(this, { content, image, masks, at: [...content.start] });
    this.strides = [1, content.size[0], content.size[0] * content.size[1]];
    this.root.querySelectorAll(".mask").forEach((box, mask) => (box.disabled = !masks[mask]));
    for (const { canvas, across, down } of this.planes) {
      const aspect = (content.size[across] * content.spacing[across]) / (content.size[down] * content.spacing[down]);
      canvas.style.setProperty("--aspect", aspect);
    }
    this.draw();
  }

  move(axis, slice) {
    if (!this.content) return false;
    const before = this.at[axis];
    this.at[axis] = clamp(slice, 0, this.content.size[axis] - 1);
    if (this.at[axis] !== before) this.draw();
    return this.at[axis] !== before;
  }

  onKey(event, plane) {
    const last = this.content?.size[plane.along] - 1, slice = this.at?.[plane.along];
    const targets = { ArrowUp: slice + 1, ArrowRight: slice + 1, ArrowDown: slice - 1, ArrowLeft: slice - 1,
      PageUp: slice + PAGE_OF_SLICES, PageDown: slice - PAGE_OF_SLICES, Home: 0, End: last };
    if (!(event.key in targets) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    this.move(plane.along, targets[event.key]);
  }

  /** Moves through the slices; who scrolls the page, and comes by a picture or to its last slice, goes on. */
  onWheel(event, plane) {
    if (event.ctrlKey || performance.now() - lastScroll < STILL_SCROLLING) return;
    const pixels = event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? event.deltaY : event.deltaY * WHEEL_STEP;
    plane.left += clamp(pixels, -WHEEL_STEP, WHEEL_STEP);
    const slices = Math.trunc(plane.left / WHEEL_STEP);
    plane.left -= slices * WHEEL_STEP;
    if (this.move(plane.along, this.at?.[plane.along] + slices) || !slices) event.preventDefault();
  }

  /** Moves the other two planes to the place under the pointer. */
  point(event, { canvas, across, down }) {
    if (!this.content) return;
    const box = canvas.getBoundingClientRect(), { size } = this.content;
    const column = Math.floor(((event.clientX - box.left) / box.width) * size[across]);
    const row = Math.floor(((event.clientY - box.top) / box.height) * size[down]);
    this.move(across, column);
    this.move(down, down === 2 ? size[2] - 1 - row : row);
  }

  draw() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      if (!this.content) return;
      const grey = this.makeWindow();
      for (const plane of this.planes) this.drawPlane(plane, grey);
    });
  }

  /** The grey of each byte, by brightness and contrast, from -1 to 1: of a window that is moved by at most its width,
   * and up to eight times as narrow or as wide. */
  makeWindow() {
    const { range, window: [black, white] } = this.content, width = white - black;
    const [brightness, contrast] = this.sliders.map((slider) => slider.value / 100);
    const half = (width / 2) * 8 ** -contrast, level = (black + white) / 2 - brightness * width;
    const digits = half < 5 ? 2 : 0;
    this.root.querySelector(".window").textContent =
      `window ${(level - half).toFixed(digits)} to ${(level + half).toFixed(digits)}`;
    const step = (range[1] - range[0]) / 255;
    return Uint8ClampedArray.from({ length: 256 },
      (_, byte) => (255 * (range[0] + byte * step - level + half)) / (2 * half));
  }

  drawPlane(plane, grey) {
    const { canvas, across, down, along } = plane, { size } = this.content, scale = devicePixelRatio;
    const columns = size[across], rows = size[down], context = canvas.getContext("2d");
    canvas.width = Math.round(canvas.clientWidth * scale);
    canvas.height = Math.round(canvas.clientHeight * scale);
    if (!canvas.width || !canvas.height) return;
    const first = this.at[along] * this.strides[along] + (down === 2 ? (rows - 1) * this.strides[2] : 0);
    const toNext = this.strides[across], toBelow = down === 2 ? -this.strides[2] : this.strides[down];
    const picture = new ImageData(columns, rows);
    for (let row = 0, to = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++, to += 4) {
        picture.data.fill(grey[this.image[first + column * toNext + row * toBelow]], to, to + 3);
        picture.data[to + 3] = 255;
      }
    }
    Object.assign(plane.pixels, { width: columns, height: rows });
    plane.pixels.getContext("2d").putImageData(picture, 0, 0);
    context.imageSmoothingQuality = "high";
    context.drawImage(plane.pixels, 0, 0, canvas.width, canvas.height);
    this.drawContours(plane, context, (mask, lookup) => (column, row) => column >= 0 && row >= 0 && column < columns
      && row < rows && lookup[mask[first + column * toNext + row * toBelow]]);
    this.drawPosition(plane, context, scale);
    this.describe(plane);
  }

  drawContours({ canvas, across, down }, context, insideOf) {
    const { size } = this.content, checked = (kind) => [...this.root.querySelectorAll(kind)].map((box) => box.checked);
    const masks = checked(".mask"), classes = checked(".class"), scale = devicePixelRatio;
    const toX = canvas.width / size[across] / 2, toY = canvas.height / size[down] / 2;
    context.lineWidth = 1.7 * scale;
    this.masks.forEach((mask, number) => {
      if (!mask || !masks[number]) return;
      context.setLineDash(DASHES[number].map((length) => length * scale));
      this.lookups.forEach((lookup, index) => {
        // a single class has no box
        if (classes.length && !classes[index]) return;
        context.strokeStyle = this.settings.classes[index].colour || this.settings.masks[number].colour;
        context.beginPath();
        for (const border of borders(insideOf(mask, lookup), size[across], size[down])) {
          border.forEach(([x, y], i) => (i ? context.lineTo(x * toX, y * toY) : context.moveTo(x * toX, y * toY)));
          context.closePath();
        }
        context.stroke();
      });
    });
    context.setLineDash([]);
  }

  /** Draws where the other two planes are, and the directions of the patient. */
  drawPosition({ canvas, across, down, letters }, context, scale) {
    const { size } = this.content, { width, height } = canvas;
    if (this.root.querySelector(".position").checked) {
      const x = ((this.at[across] + 0.5) / size[across]) * width;
      const y = (((down === 2 ? size[2] - 1 - this.at[2] : this.at[down]) + 0.5) / size[down]) * height;
      context.fillStyle = "#ffffff80";
      context.fillRect(x - scale / 2, 0, scale, height);
      context.fillRect(0, y - scale / 2, width, scale);
    }
    Object.assign(context, { font: `${13 * scale}px system-ui, sans-serif`, textAlign: "center",
      textBaseline: "middle", lineWidth: 3 * scale, strokeStyle: "black", fillStyle: "white" });
    const edge = 10 * scale, places = [[edge, height / 2], [width - edge, height / 2], [width / 2, edge],
      [width / 2, height - edge]];
    letters.forEach((letter, side) => {
      context.strokeText(letter, ...places[side]);
      context.fillText(letter, ...places[side]);
    });
  }

  /** Says which slice is shown, below the picture and to who does not see it. */
  describe({ figure, canvas, along }) {
    const { size, spacing, first, step, last, slices, origin } = this.content;
    // the block at the end may be thinner
    const slice = Math.min(first[along] + this.at[along] * step[along], last[along]);
    const place = origin[along] + slice * (spacing[along] / step[along]);
    const text = `slice ${slice + 1} of ${slices[along]}, ${Math.abs(place).toFixed(1)} mm ${SIDES[along][place < 0 ? 1 : 0]}`;
    figure.querySelector(".place").textContent = text;
    const values = { valuemin: 1, valuemax: size[along], valuenow: this.at[along] + 1, valuetext: text };
    for (const [name, value] of Object.entries(values)) canvas.setAttribute(`aria-${name}`, value);
  }
}

if ("DecompressionStream" in window) for (const root of document.querySelectorAll(".viewer")) new Viewer(root);
