// A picture on a canvas with what was found in it. All panes share one view, so that zooming one zooms all.

import { paintMask } from "./masks.js";

const MOST_ZOOM = 40;
const view = { zoom: 1, x: 0.5, y: 0.5 }; // x and y: the point in the middle, as a share of the picture
const listeners = [];

export function onViewChange(listener) {
  listeners.push(listener);
}

/** Zoom and move; the point that was in the middle may not leave the picture. */
export function setView(zoom, x = view.x, y = view.y) {
  view.zoom = Math.min(MOST_ZOOM, Math.max(1, zoom));
  const margin = 0.5 / view.zoom;
  view.x = Math.min(1 - margin, Math.max(margin, x));
  view.y = Math.min(1 - margin, Math.max(margin, y));
  listeners.forEach((listener) => listener(view));
}

export function zoomBy(factor) {
  setView(view.zoom * factor);
}

/** The colour of a class, the same as in pictures that the server draws: ids in a row are far apart in hue. */
export function classColor(number) {
  const i = number % 24;
  const hue = (i * 0.618034) % 1;
  const light = [0.45, 0.35, 0.55][i % 3];
  const chroma = 0.9 * Math.min(light, 1 - light);
  const rgb = [0, 8, 4].map((n) => {
    const k = (n + hue * 12) % 12;
    return light - chroma * Math.max(-1, Math.min(k - 3, 9 - k, 1));
  });
  const luminance = 0.2126 * rgb[0] ** 2.2 + 0.7152 * rgb[1] ** 2.2 + 0.0722 * rgb[2] ** 2.2;
  const shade = 255 * Math.min(1, (0.25 / luminance) ** (1 / 2.2)); // dark enough for white text
  return rgb.map((value) => Math.round(shade * value));
}

/** Where a picture lies in a canvas, in pixels of the screen. */
function place(canvas, size) {
  const { clientWidth, clientHeight } = canvas;
  const scale = view.zoom * Math.min(clientWidth / size.width, clientHeight / size.height);
  // what is narrower than the canvas stays in its middle
  const x = scale * size.width <= clientWidth ? 0.5 : view.x;
  const y = scale * size.height <= clientHeight ? 0.5 : view.y;
  return { scale, left: clientWidth / 2 - x * size.width * scale, top: clientHeight / 2 - y * size.height * scale };
}

/**
 * Draw a picture, or a grey one where the browser does not know its format, and detections, the best on top.
 * `size` is the picture's as the server sees it; each detection has `box_xyxy`, `color` and `text`.
 */
export function drawPicture(canvas, bitmap, size, detections, { labels, masks }) {
  const sharp = window.devicePixelRatio || 1;
  canvas.width = canvas.clientWidth * sharp;
  canvas.height = canvas.clientHeight * sharp;
  canvas.classList.toggle("zoomed", view.zoom > 1);
  const context = canvas.getContext("2d");
  context.scale(sharp, sharp);
  const { scale, left, top } = place(canvas, size);
  const area = [left, top, size.width * scale, size.height * scale];
  context.imageSmoothingEnabled = scale < 4; // single pixels are looked at, not blurred
  context.imageSmoothingQuality = "high";
  if (bitmap) context.drawImage(bitmap, ...area);
  else {
    context.fillStyle = "#808080";
    context.fillRect(...area);
  }
  if (masks) {
    for (const one of detections.filter((each) => each.segmentation?.counts)) {
      if (one.painted === undefined) one.painted = paintMask(one.segmentation, one.color);
      const painted = one.painted;
      if (!painted) continue; // without a pixel
      const { width, height } = painted.canvas;
      const corner = [left + painted.left * scale, top + painted.top * scale];
      context.drawImage(painted.canvas, ...corner, width * scale, height * scale);
    }
  }
  for (const { box_xyxy: box, color, text } of [...detections].reverse()) {
    const [x, y, right, bottom] = box.map((value, i) => value * scale + (i % 2 ? top : left));
    if (right < 0 || bottom < 0 || x > canvas.clientWidth || y > canvas.clientHeight) continue;
    context.strokeStyle = context.fillStyle = `rgb(${color})`;
    context.lineWidth = 2;
    context.strokeRect(x, y, Math.max(1, right - x), Math.max(1, bottom - y));
    if (labels) drawLabel(context, canvas, text, x, y);
  }
}

/** A label over its box, or inside where there is no room; moved into the canvas if its box begins outside. */
function drawLabel(context, canvas, text, x, y) {
  context.font = "600 13px system-ui, sans-serif";
  const width = context.measureText(text).width + 8;
  const left = Math.max(0, Math.min(x - 1, canvas.clientWidth - width));
  const top = y >= 19 ? y - 19 : Math.max(0, y);
  context.fillRect(left, top, width, 19);
  context.fillStyle = "#fff";
  context.fillText(text, left + 4, top + 14);
}

/** Let keys, wheel, mouse and fingers move a canvas's view; `sizeOf` gives the size of the picture in it. */
export function followInput(canvas, sizeOf) {
  const fingers = new Map();
  const moveBy = (dx, dy) => {
    const { scale } = place(canvas, sizeOf());
    setView(view.zoom, view.x - dx / scale / sizeOf().width, view.y - dy / scale / sizeOf().height);
  };
  const keys = {
    "+": () => zoomBy(1.5), "=": () => zoomBy(1.5), "-": () => zoomBy(1 / 1.5), 0: () => setView(1),
    ArrowLeft: () => moveBy(60, 0), ArrowRight: () => moveBy(-60, 0),
    ArrowUp: () => moveBy(0, 60), ArrowDown: () => moveBy(0, -60),
  };
  canvas.addEventListener("keydown", (event) => {
    const unused = event.key.startsWith("Arrow") && view.zoom === 1; // then the page scrolls
    if (!keys[event.key] || unused || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
  });
  // without Ctrl the page scrolls; pinching a touchpad comes as a wheel with Ctrl
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    zoomBy(Math.exp(-event.deltaY / 200));
  }, { passive: false });
  canvas.addEventListener("dblclick", () => (view.zoom > 1 ? setView(1) : setView(3)));
  const spread = () => {
    const [a, b] = [...fingers.values()];
    return Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
  };
  canvas.addEventListener("pointerdown", (event) => {
    fingers.set(event.pointerId, event);
    if (view.zoom > 1) canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const apart = fingers.size === 2 ? spread() : 0;
    fingers.set(event.pointerId, event);
    if (apart) zoomBy(spread() / apart);
    else if (view.zoom > 1) moveBy(event.clientX - before.clientX, event.clientY - before.clientY);
  });
  for (const end of ["pointerup", "pointercancel", "pointerleave"]) {
    canvas.addEventListener(end, (event) => fingers.delete(event.pointerId));
  }
}
