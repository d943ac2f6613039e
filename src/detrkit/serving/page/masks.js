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

/** A canvas with a mask in one colour, to be drawn over the picture. */
export function paintMask(segmentation, [red, green, blue]) {
  const [height, width] = segmentation.size;
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const image = new ImageData(width, height);
  const pixels = new DataView(image.data.buffer);
  const color = ((red << 24) | (green << 16) | (blue << 8) | 115) >>> 0;
  decodeMask(segmentation).forEach((inside, i) => inside && pixels.setUint32(4 * i, color));
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}
