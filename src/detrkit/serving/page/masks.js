// Masks of COCO, as pixels: run-length encoding, plain or compressed. Runs go down the columns, background first.

/** Lengths of runs. The compressed text has five bits a character, the lowest first, and differences to the run before last. */
export function runLengths(counts) {
  if (typeof counts !== "string") return counts;
  const runs = [];
  for (let at = 0; at < counts.length; ) {
    let value = 0;
    let shift = 0;
    let bits;
    do {
      bits = counts.charCodeAt(at++) - 48;
      value |= (bits & 31) << shift;
      shift += 5;
    } while (bits & 32 && at < counts.length);
    if (bits & 16 && shift < 32) value |= -1 << shift;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

/** Pixels of a mask, row by row, 1 where the object is. */
export function decodeMask({ size: [height, width], counts }) {
  const mask = new Uint8Array(width * height);
  let at = 0;
  runLengths(counts).forEach((run, number) => {
    const end = Math.min(at + run, mask.length);
    if (number % 2) for (let i = at; i < end; i++) mask[(i % height) * width + Math.floor(i / height)] = 1;
    at = end;
  });
  return mask;
}

export function maskArea(segmentation) {
  return runLengths(segmentation.counts).reduce((sum, run, number) => sum + (number % 2 ? run : 0), 0);
}

/** A mask in one colour, to be drawn over the picture: a canvas as large as the object, and where it begins. */
export function paintMask(segmentation, [red, green, blue]) {
  const width = segmentation.size[1];
  const mask = decodeMask(segmentation);
  let [left, top, right, bottom] = [width, -1, 0, 0];
  mask.forEach((inside, i) => {
    if (!inside) return;
    if (top < 0) top = Math.floor(i / width);
    left = Math.min(left, i % width);
    right = Math.max(right, (i % width) + 1);
    bottom = Math.floor(i / width) + 1;
  });
  if (top < 0) return null;
  const image = new ImageData(right - left, bottom - top);
  const pixels = new DataView(image.data.buffer);
  const color = ((red << 24) | (green << 16) | (blue << 8) | 115) >>> 0;
  for (let y = 0, at = 0; y < image.height; y++) {
    for (let x = 0; x < image.width; x++, at += 4) {
      if (mask[(top + y) * width + left + x]) pixels.setUint32(at, color);
    }
  }
  const canvas = Object.assign(document.createElement("canvas"), { width: image.width, height: image.height });
  canvas.getContext("2d").putImageData(image, 0, 0);
  return { canvas, left, top };
}
