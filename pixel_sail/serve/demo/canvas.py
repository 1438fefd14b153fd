"""The part of the page on which visitors draw: an image with points, boxes and strokes, as a gradio.HTML with a script.

Its value is {"image": data URI, "width": pixels, "height": pixels, "shapes": [...]}, with "" for no image;
`regions.drawn_regions` says what a shape is. The script changes the shapes alone. An image that is dropped on it, or
pasted, goes to the file input inside the element whose id is UPLOAD_ID.
"""

from __future__ import annotations

import json

from pixel_sail.serve.demo.regions import COLOURS, MAX_SHAPES, NAMES

UPLOAD_ID = "ps-upload"

_CHIPS = "".join(
    f'<button type="button" data-region="{k}" style="--ps-chip:{colour}" title="draw region {name}">{name}</button>'
    for k, (name, colour) in enumerate(zip(NAMES, COLOURS, strict=True))
)
_CLICKS = """
  <span class="ps-group" aria-label="clicks that refine the mask">
    <button type="button" data-tool="plus" title="click on what belongs to the mask">+ click</button>
    <button type="button" data-tool="minus" title="click on what does not belong to the mask">− click</button>
  </span>"""
_TEMPLATE = f"""
<div class="ps-tools" role="toolbar" aria-label="drawing tools">
  <span class="ps-group" aria-label="tool">
    <button type="button" data-tool="brush" title="paint over what you mean">Brush</button>
    <button type="button" data-tool="box" title="drag from corner to corner">Box</button>
    <button type="button" data-tool="point" title="click on what you mean">Point</button>
  </span>
  <span class="ps-group ps-chips" aria-label="region">{_CHIPS}</span>CLICKS
  <span class="ps-group">
    <button type="button" data-act="undo">Undo</button>
    <button type="button" data-act="clear">Clear</button>
  </span>
</div>
<div class="ps-stage"><canvas width="8" height="5" aria-label="the image, to draw regions on"></canvas>
<div class="ps-hint">Drop an image here, paste one, press “Choose an image”, or take an example below.</div></div>
"""


def template(clicks: bool) -> str:
    """HTML of the canvas and its tools; `clicks`: also those that refine a mask."""
    return _TEMPLATE.replace("CLICKS", _CLICKS if clicks else "")


STYLE = """
.ps-tools { display: flex; flex-wrap: wrap; gap: 6px 14px; margin-bottom: 8px; }
.ps-group { display: inline-flex; gap: 4px; }
.ps-tools button { margin: 0; padding: 3px 10px; line-height: 20px; font-size: 14px;
  border: 1px solid var(--border-color-primary); border-radius: 6px;
  background: var(--background-fill-secondary); color: var(--body-text-color); cursor: pointer; }
.ps-tools button[aria-pressed=true] { border-color: var(--color-accent);
  box-shadow: inset 0 0 0 1px var(--color-accent); }
.ps-chips button { background: var(--ps-chip); color: white; font-weight: 600; opacity: 0.75; }
.ps-chips button[aria-pressed=true] { opacity: 1; border-color: var(--body-text-color);
  box-shadow: 0 0 0 1px var(--body-text-color); }
.ps-stage { position: relative; border: 1px solid var(--border-color-primary); border-radius: 8px; overflow: hidden;
  background: var(--background-fill-secondary); min-height: 180px; text-align: center; }
.ps-stage.ps-over { outline: 2px dashed var(--color-accent); outline-offset: -4px; }
.ps-stage canvas { display: inline-block; vertical-align: top; max-width: 100%; max-height: 52vh; touch-action: none;
  cursor: crosshair; }
.ps-stage.ps-none canvas { visibility: hidden; position: absolute; }
.ps-hint { display: none; padding: 64px 24px; opacity: 0.7; }
.ps-stage.ps-none .ps-hint { display: block; }
"""
SCRIPT = (
    f"const COLOURS = {json.dumps(COLOURS)}, NAMES = {json.dumps(NAMES)}, MAX_SHAPES = {MAX_SHAPES};\n"
    f"const UPLOAD = {json.dumps(f'#{UPLOAD_ID} input[type=file]')};\n"
    """
const stage = element.querySelector('.ps-stage'), canvas = element.querySelector('canvas');
const pen = canvas.getContext('2d'), image = new Image();
let tool = 'brush', region = 0, drawing = null;

const shapes = () => (props.value && props.value.shapes) || [];
const isClick = () => tool === 'plus' || tool === 'minus';
const keep = list => { props.value = {...props.value, shapes: list}; paint(); };
const press = () => element.querySelectorAll('[data-tool], [data-region]').forEach(button =>
  button.setAttribute('aria-pressed', button.dataset.tool === tool || button.dataset.region === String(region)));

function paint() {
  if (!props.value || !props.value.image) { stage.classList.add('ps-none'); return; }
  stage.classList.remove('ps-none');
  if (!image.complete || !image.naturalWidth) return;
  const scale = canvas.width / props.value.width;
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  const all = drawing ? [...shapes(), drawing] : shapes(), tagged = new Set();
  for (const shape of all) {
    const at = shape.xy.map(([x, y]) => [x * scale, y * scale]), colour = COLOURS[shape.region];
    pen.strokeStyle = pen.fillStyle = colour;
    pen.lineCap = pen.lineJoin = 'round';
    if (shape.kind === 'click') {
      const [x, y] = at[0], arm = canvas.width / 130;
      pen.fillStyle = shape.positive ? '#1f9d3a' : '#d62828'; pen.strokeStyle = 'white';
      pen.lineWidth = canvas.width / 300;
      pen.beginPath(); pen.arc(x, y, canvas.width / 70, 0, 7); pen.fill(); pen.stroke();
      pen.beginPath(); pen.moveTo(x - arm, y); pen.lineTo(x + arm, y);
      if (shape.positive) { pen.moveTo(x, y - arm); pen.lineTo(x, y + arm); }
      pen.stroke();
    } else if (shape.kind === 'point') for (const [x, y] of at) {
      pen.beginPath(); pen.arc(x, y, canvas.width / 90, 0, 7); pen.fill();
      pen.lineWidth = canvas.width / 300; pen.strokeStyle = 'white'; pen.stroke();
    } else if (shape.kind === 'box') {
      const [[a, b], [c, d]] = at;
      pen.globalAlpha = 0.15; pen.fillRect(a, b, c - a, d - b); pen.globalAlpha = 1;
      pen.lineWidth = canvas.width / 200; pen.strokeRect(a, b, c - a, d - b);
    } else {
      pen.globalAlpha = 0.55; pen.lineWidth = shape.width * scale; pen.beginPath(); pen.moveTo(...at[0]);
      for (const xy of at.length > 1 ? at.slice(1) : at) pen.lineTo(...xy);
      pen.stroke(); pen.globalAlpha = 1;
    }
  }
  pen.font = `600 ${canvas.width / 34}px sans-serif`;
  pen.textBaseline = 'middle'; pen.textAlign = 'center';
  // the letter, at the first shape of each region
  for (const shape of all) if (shape.kind !== 'click' && !tagged.has(shape.region)) {
    tagged.add(shape.region);
    const size = canvas.width / 26, inside = (value, side) => Math.min(Math.max(value * scale, size), side - size);
    const x = inside(shape.xy[0][0], canvas.width), y = inside(shape.xy[0][1], canvas.height) - size * 0.7;
    pen.fillStyle = COLOURS[shape.region];
    pen.fillRect(x - size / 2, y - size / 2, size, size);
    pen.fillStyle = 'white'; pen.fillText(NAMES[shape.region], x, y);
  }
}

function load() {  // a new value from the server
  const source = props.value && props.value.image;
  drawing = null;
  if (source && image.getAttribute('src') !== source) image.src = source; else paint();
  const first = shapes().find(shape => shape.kind !== 'click');
  if (first && !isClick()) { region = first.region; tool = first.kind; press(); }
}

image.onload = () => { canvas.width = image.naturalWidth; canvas.height = image.naturalHeight; paint(); };

function position(event) {
  const box = canvas.getBoundingClientRect(), inside = (share, side) => Math.min(Math.max(share, 0), 0.9999) * side;
  return [inside((event.clientX - box.left) / box.width, props.value.width),
    inside((event.clientY - box.top) / box.height, props.value.height)].map(value => Math.round(value * 10) / 10);
}

canvas.onpointerdown = event => {
  if (event.button || shapes().length >= MAX_SHAPES) return;
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  const xy = position(event);
  drawing = {region, kind: isClick() ? 'click' : tool, xy: tool === 'box' ? [xy, xy] : [xy]};
  if (isClick()) drawing.positive = tool === 'plus';
  if (tool === 'brush') drawing.width = Math.max(2, Math.round(Math.max(props.value.width, props.value.height) / 28));
  paint();
};
canvas.onpointermove = event => {
  if (!drawing || tool === 'point' || isClick()) return;
  const xy = position(event), [x, y] = drawing.xy[drawing.xy.length - 1];
  if (tool === 'box') drawing.xy = [drawing.xy[0], xy];
  else if (Math.hypot(xy[0] - x, xy[1] - y) > drawing.width / 6) drawing.xy.push(xy);
  paint();
};
const finish = () => {
  if (!drawing) return;
  const shape = drawing, [[a, b], [c, d] = []] = shape.xy;
  drawing = null;
  // a box without an area was a click: nothing was drawn
  if (shape.kind === 'box' && (a === c || b === d)) paint(); else keep([...shapes(), shape]);
};
canvas.onpointerup = canvas.onpointercancel = finish;

element.querySelector('.ps-tools').onclick = event => {
  const data = event.target.dataset;
  if (data.tool) tool = data.tool;
  if (data.region) region = Number(data.region);
  if (data.act === 'undo') keep(shapes().slice(0, -1));
  if (data.act === 'clear') keep([]);
  press();
};

function upload(files) {
  const input = document.querySelector(UPLOAD), file = [...files].find(file => file.type.startsWith('image/'));
  if (!input || !file) return false;
  const data = new DataTransfer();
  data.items.add(file);
  input.files = data.files;
  input.dispatchEvent(new Event('change', {bubbles: true}));
  return true;
}
stage.ondragover = event => { event.preventDefault(); stage.classList.add('ps-over'); };
stage.ondragleave = () => stage.classList.remove('ps-over');
stage.ondrop = event => {
  event.preventDefault();
  stage.classList.remove('ps-over');
  upload(event.dataTransfer.files);
};
document.addEventListener('paste', event => {
  if (event.clipboardData && upload(event.clipboardData.files)) event.preventDefault();
});

watch('value', load);
press(); load();
"""
)
