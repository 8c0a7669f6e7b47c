// Drawing and comparing boxes. Boxes are [x0, y0, x1, y1] in pixels of the image.

const MIN_SIDE = 900; // smaller pictures are enlarged, so that names are readable

/** Return the enlargement of a picture. */
export function scaleOf(width, height) {
  return Math.max(1, Math.min(8, MIN_SIDE / Math.max(width, height)));
}

/** Return the intersection over union of two boxes. */
export function iou(a, b) {
  const width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
  const height = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  if (width <= 0 || height <= 0) return 0;
  const shared = width * height;
  const area = (box) => (box[2] - box[0]) * (box[3] - box[1]);
  return shared / (area(a) + area(b) - shared);
}

/** Return the detections of `ours` that have a partner in `theirs`: same class, IoU of at least 0.5, one to one. */
export function shared(ours, theirs) {
  const free = new Set(theirs);
  const found = new Set();
  for (const one of ours) {
    let best = null;
    let bestIou = 0.5;
    for (const other of free) {
      const overlap = other.name === one.name ? iou(one.box, other.box) : 0;
      if (overlap >= bestIou) {
        best = other;
        bestIou = overlap;
      }
    }
    if (best) {
      free.delete(best);
      found.add(one);
    }
  }
  return found;
}

/** Return black or white, whichever is easier to read on a colour "#rrggbb". */
export function inkOn(colour) {
  const channel = (at) => {
    const value = parseInt(colour.slice(at, at + 2), 16) / 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  };
  const luminance = 0.2126 * channel(1) + 0.7152 * channel(3) + 0.0722 * channel(5);
  return luminance > 0.179 ? "#000" : "#fff";
}

/**
 * Draw an image with boxes.
 * options: {width, height, image (or null), detections, colours (by label), names (boolean),
 * isDashed (function), marked (a detection or null)}
 */
export function draw(canvas, options) {
  const { width, height, image, detections, colours, names, isDashed, marked } = options;
  const scale = scaleOf(width, height);
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  if (image) context.drawImage(image, 0, 0, canvas.width, canvas.height);
  else {
    context.fillStyle = "#8884";
    context.fillRect(0, 0, canvas.width, canvas.height);
  }
  const unit = Math.max(canvas.width, canvas.height) / MIN_SIDE;
  const line = Math.max(2, 2.2 * unit);
  const size = Math.max(12, 15 * unit);
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const ordered = [...detections].reverse(); // the best ones are on top
  for (const found of ordered) {
    const [x0, y0, x1, y1] = found.box.map((value) => value * scale);
    context.strokeStyle = colours[found.label];
    context.lineWidth = found === marked ? 3 * line : line;
    context.setLineDash(isDashed(found) ? [4 * line, 3 * line] : []);
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  }
  context.setLineDash([]);
  if (!names) return;
  for (const found of ordered) {
    const label = `${found.name} ${found.score.toFixed(2)}`;
    const [x0, y0] = found.box.map((value) => value * scale);
    const wide = context.measureText(label).width + 0.7 * size;
    const high = 1.45 * size;
    const x = Math.max(0, Math.min(x0 - line / 2, canvas.width - wide));
    const y = y0 - high >= 0 ? y0 - high : Math.max(0, y0);
    context.fillStyle = colours[found.label];
    context.fillRect(x, y, wide, high);
    context.fillStyle = inkOn(colours[found.label]);
    context.fillText(label, x + 0.35 * size, y + high / 2);
  }
}
