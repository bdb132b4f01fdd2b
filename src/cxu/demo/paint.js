// Painting over the film: the canvas shows the stroke under way, the server draws it into the picture.
// The template is rendered anew with every picture, so listeners sit on the element around it.
const SIDE = 1024;
let points = null;
let cursor = [SIDE / 2, SIDE / 2];

const canvas = () => element.querySelector("canvas.cxu-paint");
const brush = () => Number(document.querySelector("#cxu-brush input[type=range]")?.value || 60);

function place(event) {
  const box = canvas().getBoundingClientRect();
  return [
    Math.round(((event.clientX - box.left) / box.width) * SIDE * 10) / 10,
    Math.round(((event.clientY - box.top) / box.height) * SIDE * 10) / 10,
  ];
}

function show(line, ring) {
  const target = canvas();
  if (!target) return;
  if (target.width !== SIDE) target.width = target.height = SIDE;
  const context = target.getContext("2d");
  context.clearRect(0, 0, SIDE, SIDE);
  context.lineCap = context.lineJoin = "round";
  if (line && line.length) {
    context.lineWidth = 2 * brush();
    context.strokeStyle = "#000";
    context.beginPath();
    context.moveTo(...line[0]);
    for (const point of line) context.lineTo(...point);
    context.stroke();
  }
  if (ring) {
    context.lineWidth = 3;
    context.strokeStyle = "#fff";
    context.beginPath();
    context.arc(ring[0], ring[1], brush(), 0, 2 * Math.PI);
    context.stroke();
  }
}

function send(line) {
  trigger("stroke", { points: line, radius: brush() });
}

element.addEventListener("pointerdown", (event) => {
  if (event.target !== canvas() || event.button !== 0) return;
  event.preventDefault();
  event.target.setPointerCapture(event.pointerId);
  event.target.focus({ preventScroll: true });
  points = [place(event)];
  show(points, points[0]);
});

element.addEventListener("pointermove", (event) => {
  if (event.target !== canvas()) return;
  cursor = place(event);
  if (points && points.length < 2000) {
    const [x, y] = points[points.length - 1];
    if (Math.hypot(cursor[0] - x, cursor[1] - y) > 4) points.push(cursor);
  }
  show(points, cursor);
});

function finish(event) {
  if (!points) return;
  const line = points;
  points = null;
  if (event.type === "pointerup") send(line);
  else show(null, null);
}
element.addEventListener("pointerup", finish);
element.addEventListener("pointercancel", finish);
element.addEventListener("pointerout", (event) => {
  if (event.target === canvas() && !points) show(null, null);
});

element.addEventListener("keydown", (event) => {
  if (event.target !== canvas()) return;
  const step = event.shiftKey ? 8 : 32;
  const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
  if (event.key in moves) {
    cursor = cursor.map((at, axis) => Math.min(SIDE, Math.max(0, at + moves[event.key][axis])));
    show(null, cursor);
  } else if (event.key === " " || event.key === "Enter") {
    send([cursor]);
  } else return;
  event.preventDefault();
});
