// One model's picture: image, attention, boxes, and its heads as small pictures. It draws what `state` says and reports clicks.

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") node.textContent = value;
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

// Boxes that are shown: [number, box], best first.
function shownBoxes(model, state) {
  const shown = [];
  for (let i = 0; i < model.boxes.length && shown.length < state.most; i++) {
    if (model.boxes[i][4] >= state.threshold) shown.push([i, model.boxes[i]]);
  }
  return shown;
}

const boxColour = (model, box, state) => (state.agnostic ? "#f97316" : model.colours[box[5]]);
const boxText = (model, box, state) => (state.agnostic ? "" : `${model.classes[box[5]]} `) + box[4].toFixed(2);

class Stage {
  // `on`: {box(stage, number), point(stage, x, y), clear(stage)}
  constructor(index, on) {
    this.index = index;
    this.on = on;
    this.look = null; // what the server said of the selection
    this.selected = null; // {box: number} or {point: [x, y]}
    this.title = make("h2");
    this.note = make("span", { class: "sd-note" });
    this.image = make("img", { alt: "", draggable: "false" });
    this.canvas = make("canvas", { "aria-hidden": "true" });
    this.boxes = make("div", { class: "sd-boxes", role: "group" });
    this.frame = make("div", { class: "sd-frame" }, this.image, this.canvas, this.boxes);
    this.heads = make("div", { class: "sd-heads", role: "group", "aria-label": "Heads" });
    this.message = make("p", { class: "sd-message", hidden: "" });
    this.node = make("section", { class: "sd-stage" },
      make("header", {}, this.title, this.note), this.frame, this.message, this.heads);
    this.boxes.addEventListener("click", (event) => this.clicked(event));
    this.boxes.addEventListener("keydown", (event) => this.pressed(event));
    new ResizeObserver(() => this.paint()).observe(this.frame);
  }

  open(picture, model, state) {
    Object.assign(this, { picture, model, state, look: null, selected: null });
    this.title.textContent = this.title.title = model.name;
    this.image.src = picture.url;
    this.image.alt = `${picture.name}, as seen by ${model.name}`;
    this.frame.style.aspectRatio = `${picture.width} / ${picture.height}`;
    this.frame.style.maxWidth = `calc(72vh * ${(picture.width / picture.height).toFixed(4)})`;
    this.say(null);
    this.draw();
  }

  // A sentence below the picture, such as why there is no attention.
  say(text) {
    this.message.hidden = text === null;
    this.message.textContent = text || "";
  }

  draw() {
    if (!this.model) return;
    const { picture, model, state } = this, shown = shownBoxes(model, state);
    this.note.textContent = `${model.note} · ${shown.length} ${shown.length === 1 ? "box" : "boxes"}`;
    this.boxes.dataset.tool = state.tool;
    this.boxes.setAttribute("aria-label", state.tool === "point" ? "Picture: click a point, or move with the arrow keys" : "Boxes");
    if (state.tool === "point") this.boxes.setAttribute("tabindex", "0");
    else this.boxes.removeAttribute("tabindex");
    const chosenBox = this.selected && "box" in this.selected ? this.selected.box : null;
    const first = shown.some(([number]) => number === chosenBox) ? chosenBox : shown.length ? shown[0][0] : null;
    if (this.changed("boxesFrom", model, state.agnostic)) this.makeBoxes();
    const visible = new Set(shown.map(([number]) => number));
    for (const button of this.boxes.children) {
      const number = Number(button.dataset.number);
      button.hidden = !visible.has(number);
      button.setAttribute("aria-pressed", String(number === chosenBox));
      button.tabIndex = state.tool === "box" && number === first ? 0 : -1;
    }
    this.boxes.toggleAttribute("data-chosen", chosenBox !== null || Boolean(this.selected));
    this.paint();
    this.drawHeads();
  }

  // All boxes, small ones above large ones; `draw` hides those that are not wanted.
  makeBoxes() {
    const { picture, model, state } = this, area = ([, box]) => (box[2] - box[0]) * (box[3] - box[1]);
    const bySize = [...model.boxes.entries()].sort((a, b) => area(b) - area(a));
    this.boxes.replaceChildren(...bySize.map(([number, box]) => {
      const text = boxText(model, box, state);
      const button = make("button", {
        type: "button", class: "sd-box", "data-number": number, "aria-label": text.replace(/ ?(\S+)$/, ", score $1"),
        "data-top": box[1] < picture.height * 0.06 ? "" : null, "data-right": box[0] > picture.width * 0.75 ? "" : null,
      }, make("span", { text }));
      Object.assign(button.style, {
        left: `${(100 * box[0]) / picture.width}%`, top: `${(100 * box[1]) / picture.height}%`,
        width: `${(100 * (box[2] - box[0])) / picture.width}%`, height: `${(100 * (box[3] - box[1])) / picture.height}%`,
      });
      button.style.setProperty("--colour", boxColour(model, box, state));
      return button;
    }));
  }

  // Whether anything that `what` was drawn from has changed: a slider that moves must not paint attention anew.
  changed(what, ...from) {
    const same = this[what]?.length === from.length && from.every((value, i) => value === this[what][i]);
    this[what] = from;
    return !same;
  }

  // Attention, at the resolution of the display.
  paint() {
    const { clientWidth: width, clientHeight: height } = this.frame;
    if (!width || !height) return;
    const { layer, head, style, references } = this.state;
    if (!this.changed("paintedFrom", this.look, this.selected, layer, head, style, references, width, height)) return;
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    if (this.look) this.paintOn(this.canvas.getContext("2d"), this.state, this.canvas.width, this.canvas.height);
  }

  paintOn(context, view, width, height) {
    const point = this.selected && "point" in this.selected ? this.selected.point : null;
    paintLook(context, this.look, view, point, width, height);
  }

  drawHeads() {
    if (!this.changed("headsFrom", this.look, this.selected, this.state.layer, this.state.head)) return;
    const count = this.look ? this.look.shape[1] : 0;
    const small = this.look ? [null, ...Array(count).keys()] : [];
    this.heads.replaceChildren(...small.map((head) => {
      const width = 160, height = Math.round((160 * this.picture.height) / this.picture.width);
      const canvas = make("canvas", { width, height, "aria-hidden": "true" }), context = canvas.getContext("2d");
      if (this.image.complete) context.drawImage(this.image, 0, 0, width, height);
      this.paintOn(context, { ...this.state, head, references: false, style: "heat" }, width, height);
      const name = head === null ? "mean" : `${head + 1}`;
      const button = make("button", {
        type: "button", class: "sd-head", "aria-pressed": String(head === this.state.head),
        "aria-label": head === null ? "Mean of the heads" : `Head ${name}`,
      }, canvas, make("span", { text: name }));
      button.addEventListener("click", () => this.on.head(head));
      return button;
    }));
  }

  clicked(event) {
    if (this.state.tool === "point") {
      const area = this.boxes.getBoundingClientRect();
      this.on.point(this, (event.clientX - area.left) / area.width, (event.clientY - area.top) / area.height);
      return;
    }
    const button = event.target.closest(".sd-box");
    if (button) this.on.box(this, Number(button.dataset.number));
    else this.on.clear(this);
  }

  // Arrow keys: from box to box, or the point by a thirtieth of the picture. Escape lets go.
  pressed(event) {
    const step = { ArrowRight: [1, 0], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowUp: [0, -1] }[event.key];
    if (event.key === "Escape") this.on.clear(this);
    if (!step) return;
    event.preventDefault();
    if (this.state.tool === "point") {
      const [x, y] = this.selected && "point" in this.selected ? this.selected.point : [0.5, 0.5];
      const inside = (value) => Math.min(Math.max(value, 0), 1);
      this.on.point(this, inside(x + step[0] / 30), inside(y + step[1] / 30));
      return;
    }
    const numbers = shownBoxes(this.model, this.state).map(([number]) => number);
    const at = numbers.indexOf(Number(document.activeElement.dataset.number));
    const next = numbers[(at + step[0] + step[1] + numbers.length) % numbers.length];
    this.boxes.querySelector(`[data-number="${next}"]`)?.focus();
  }

  // The picture as it is shown, for saving: [width, height] pixels from (left, top).
  save(context, left, top, width, height) {
    context.save();
    context.translate(left, top);
    context.beginPath();
    context.rect(0, 0, width, height);
    context.clip();
    context.drawImage(this.image, 0, 0, width, height);
    if (this.look) this.paintOn(context, this.state, width, height);
    const sx = width / this.picture.width, sy = height / this.picture.height, font = Math.max(13, width / 55);
    const only = this.selected ? this.selected.box : undefined;
    for (const [number, box] of shownBoxes(this.model, this.state).reverse()) {
      if (this.selected && number !== only) continue;
      const [x, y, w, h] = [box[0] * sx, box[1] * sy, (box[2] - box[0]) * sx, (box[3] - box[1]) * sy];
      const text = boxText(this.model, box, this.state), colour = boxColour(this.model, box, this.state);
      context.strokeStyle = context.fillStyle = colour;
      context.lineWidth = font / 6;
      context.strokeRect(x, y, w, h);
      context.font = `600 ${font}px system-ui, sans-serif`;
      const up = y > font * 1.5 ? y - font * 1.5 : y;
      context.fillRect(x - font / 12, up, context.measureText(text).width + font * 0.8, font * 1.5);
      context.fillStyle = "#ffffff";
      context.textBaseline = "middle";
      context.fillText(text, x + font * 0.35, up + font * 0.78);
    }
    context.restore();
  }
}
