// The page: examples, controls, the table, and the talk with the server. `element`, `trigger`, `props`, `server` and `watch` are Gradio's.

const find = (selector) => element.querySelector(selector);
const root = find(".sd");
const state = { threshold: 0.5, most: 15, agnostic: false, tool: "box", layer: null, head: null, style: "both", references: true };
let data = null; // of the picture: {picture, models}
let stages = [];
let active = 0; // whose detections the table lists
let asked = 0; // number of the last question; late answers to earlier ones are dropped

// ---- controls

// A row of choices, of which one is taken: [[value, text, title?], …].
function segments(node, choices, value, choose) {
  const held = node.contains(document.activeElement);
  node.replaceChildren(...choices.map(([own, text, title]) => {
    const taken = own === value;
    const button = make("button", { type: "button", role: "radio", "aria-checked": String(taken), tabindex: taken ? "0" : "-1", title, text });
    button.addEventListener("click", () => choose(own));
    return button;
  }));
  node.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const at = choices.findIndex(([own]) => own === value);
    choose(choices[(at + step + choices.length) % choices.length][0]);
  };
  if (held) node.querySelector('[aria-checked="true"]')?.focus();
}

function set(changes) {
  Object.assign(state, changes);
  draw();
}

function drawControls() {
  const looks = stages.map((stage) => stage.look).filter(Boolean);
  const layers = Math.max(0, ...looks.map((look) => look.shape[0]));
  const tools = [["box", "Boxes", "Where the decoder looked for a box"]];
  if (data?.models.some((model) => model.encoder)) tools.push(["point", "A point", "Where the encoder looked from a point of the picture"]);
  segments(find(".sd-tool"), tools, state.tool, (tool) => {
    stages.forEach(forget);
    set({ tool, layer: null, head: null });
  });
  segments(find(".sd-layers"), [[null, "mean"], ...Array.from({ length: layers }, (_, i) => [i, `${i + 1}`])], state.layer, (layer) => set({ layer }));
  segments(find(".sd-style"), [["heat", "Heat"], ["dots", "Dots"], ["both", "Both"]], state.style, (style) => set({ style }));
  find(".sd-layers").parentNode.hidden = looks.length === 0;
  find(".sd-style").parentNode.hidden = !looks.some((look) => look.points);
  find(".sd-references").parentNode.hidden = !looks.some((look) => look.references);
  find(".sd-threshold-value").textContent = state.threshold.toFixed(2);
  find(".sd-most-value").textContent = state.most;
  find(".sd-threshold").value = state.threshold;
  find(".sd-export").disabled = data === null;
  find(".sd-hint").textContent = state.tool === "point"
    ? "Click anywhere in the picture to see where the encoder looked from there."
    : "Click a box to see where the decoder looked.";
}

function drawTable() {
  const tabs = find(".sd-tabs");
  tabs.hidden = !data || data.models.length < 2;
  if (!data) return;
  segments(tabs, data.models.map((model, i) => [i, model.name]), active, (i) => {
    active = i;
    draw();
  });
  const model = data.models[active], body = find("tbody");
  if (tableOf[0] !== model || tableOf[1] !== state.agnostic) makeRows(body, model);
  const visible = new Set(shownBoxes(model, state).map(([number]) => number)), taken = stages[active].selected?.box;
  const reachable = visible.has(taken) ? taken : 0; // boxes are in order of their scores: if any is shown, the first is
  for (const row of body.children) {
    const number = row.dataset.number ? Number(row.dataset.number) : null;
    row.hidden = number === null ? visible.size > 0 : !visible.has(number);
    row.setAttribute("aria-selected", String(number !== null && number === taken));
    row.tabIndex = number === reachable ? 0 : -1;
  }
}

let tableOf = []; // what the rows were made of

function makeRows(body, model) {
  tableOf = [model, state.agnostic];
  body.replaceChildren(...model.boxes.map((box, number) => make("tr", { "data-number": number },
    make("td", {}, make("i", { style: `background:${boxColour(model, box, state)}` }), state.agnostic ? "object" : model.classes[box[5]]),
    make("td", {}, make("b", { style: `--part:${(100 * box[4]).toFixed(1)}%` }), box[4].toFixed(2)),
    make("td", { text: `${Math.round(box[2] - box[0])} × ${Math.round(box[3] - box[1])}` }))),
  make("tr", { class: "sd-none" }, make("td", { colspan: "3", text: "No box reaches the least score." })));
}

function draw() {
  for (const stage of stages) stage.draw();
  drawControls();
  drawTable();
}

// ---- attention

function forget(stage) {
  Object.assign(stage, { selected: null, look: null });
  stage.node.toggleAttribute("data-pending", false);
  stage.say(null);
}

async function ask(stage, selected, question) {
  stage.selected = selected;
  stage.node.toggleAttribute("data-pending", true);
  stage.draw();
  const number = ++asked, picture = data.picture.id;
  stage.asked = number;
  const answer = await server.look({ picture, model: stage.index, ...question }).catch(() => ({ error: "The server does not answer; is it still running?" }));
  if (stage.asked !== number || data.picture.id !== picture) return;
  stage.node.toggleAttribute("data-pending", false);
  stage.look = answer.error ? null : decodeLook(answer);
  stage.say(answer.error || null);
  if (stage.look) {
    if (state.layer !== null && state.layer >= stage.look.shape[0]) state.layer = null;
    if (state.head !== null && state.head >= stage.look.shape[1]) state.head = null;
  }
  draw();
}

const area = (box) => Math.max(0, box[2] - box[0]) * Math.max(0, box[3] - box[1]);

function overlap(a, b) {
  const both = area([Math.max(a[0], b[0]), Math.max(a[1], b[1]), Math.min(a[2], b[2]), Math.min(a[3], b[3])]);
  return both / (area(a) + area(b) - both || 1);
}

const on = {
  // The same object in the other models, if they show one, so that what they looked at can be compared.
  async box(stage, number) {
    if (stage.selected?.box === number) return on.clear(stage);
    active = stage.index;
    const chosenBox = stage.model.boxes[number];
    await Promise.all(stages.map((other) => {
      if (other === stage) return ask(other, { box: number }, { box: number });
      const [best] = shownBoxes(other.model, state).map(([n, box]) => [overlap(box, chosenBox), n]).sort((a, b) => b[0] - a[0]);
      if (best && best[0] > 0.3) return ask(other, { box: best[1] }, { box: best[1] });
      forget(other);
      other.say("No box of this model overlaps that one.");
    }));
    draw();
  },
  async point(stage, x, y) {
    active = stage.index;
    await Promise.all(stages.filter((other) => other.model.encoder).map((other) => ask(other, { point: [x, y] }, { x, y })));
  },
  head: (head) => set({ head }),
  clear() {
    asked++;
    stages.forEach((stage) => { forget(stage); stage.asked = asked; });
    draw();
  },
};

// ---- pictures

function notice(text) {
  find(".sd-notice").hidden = !text;
  find(".sd-notice").textContent = text || "";
}

let patience = null; // a timer: an answer that never comes must not leave the page waiting

function busy(yes) {
  root.toggleAttribute("data-busy", yes);
  clearTimeout(patience);
  if (yes) patience = setTimeout(() => { busy(false); notice("The server does not answer; is it still running?"); }, 120000);
}

// The lowest of the models' own. Where nobody chose one: half, or the score of the third best box where none reaches half.
function firstThreshold(models) {
  return Math.min(...models.map((model) => {
    const best = model.boxes.slice(0, 3);
    if (model.threshold !== null) return Math.floor(model.threshold * 100) / 100;
    return best.length && best[0][4] < 0.5 ? Math.floor(best[best.length - 1][4] * 100) / 100 : 0.5;
  }));
}

function received() {
  const answer = props.value;
  busy(false);
  if (!answer) return;
  notice(answer.error);
  if (answer.error) return;
  data = { picture: answer.picture, models: answer.models };
  if (stages.length !== data.models.length) {
    stages = data.models.map((_, i) => new Stage(i, on));
    find(".sd-stages").replaceChildren(...stages.map((stage) => stage.node));
    root.dataset.models = stages.length;
  }
  active = Math.min(active, stages.length - 1);
  state.threshold = firstThreshold(data.models);
  stages.forEach((stage, i) => stage.open(data.picture, data.models[i], state));
  root.dataset.ready = "true";
  draw();
}

function pick(i) {
  busy(true);
  trigger("select", { example: i });
  find(".sd-examples").querySelectorAll("button").forEach((button, k) => button.setAttribute("aria-pressed", String(k === i)));
}

// Gradio's own upload button, hidden, carries the file: its limits hold.
function hand(file) {
  if (!file) return;
  if (file.size > props.mostBytes) return notice(`The file has ${Math.round(file.size / 1e6)} MB, at most ${Math.round(props.mostBytes / 1e6)} MB are taken.`);
  if (!/\.(jpe?g|png|webp|bmp)$/i.test(file.name)) return notice("This is no image in the formats JPEG, PNG, WEBP, BMP.");
  notice(null);
  busy(true);
  const carrier = new DataTransfer(), input = document.querySelector("input[type=file]"); // the page's only one
  carrier.items.add(file);
  input.files = carrier.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
  find(".sd-examples").querySelectorAll("button").forEach((button) => button.setAttribute("aria-pressed", "false"));
}

function save() {
  const { width, height } = data.picture, scale = Math.max(1, 1200 / width), gap = 24, font = 26, head = font * 1.8;
  const w = Math.round(width * scale), h = Math.round(height * scale), canvas = document.createElement("canvas");
  canvas.width = stages.length * (w + gap) - gap;
  canvas.height = h + head;
  const context = canvas.getContext("2d");
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  stages.forEach((stage, i) => {
    context.fillStyle = "#1c1917";
    context.font = `600 ${font}px system-ui, sans-serif`;
    context.textBaseline = "middle";
    context.fillText(stage.model.name, i * (w + gap) + 4, head / 2);
    stage.save(context, i * (w + gap), head, w, h);
  });
  canvas.toBlob((blob) => {
    const link = make("a", { href: URL.createObjectURL(blob), download: `siamdetr-${data.picture.name.replace(/\W+/g, "-")}.png` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
}

// ---- beginning

const chooser = make("input", { type: "file", accept: ".jpg,.jpeg,.png,.webp,.bmp", hidden: "" });
chooser.addEventListener("change", () => { hand(chooser.files[0]); chooser.value = ""; });
find(".sd-open").addEventListener("click", () => chooser.click());
find(".sd-export").addEventListener("click", save);
find(".sd-threshold").addEventListener("input", (event) => set({ threshold: Number(event.target.value) }));
find(".sd-most").addEventListener("input", (event) => set({ most: Number(event.target.value) }));
find(".sd-agnostic").addEventListener("change", (event) => set({ agnostic: event.target.checked }));
find(".sd-references").addEventListener("change", (event) => set({ references: event.target.checked }));
function chooseRow(row) {
  if (!row?.dataset.number) return;
  const frame = stages[active].frame, { top, bottom } = frame.getBoundingClientRect();
  if (bottom < 120 || top > window.innerHeight - 120) stages[active].node.scrollIntoView({ block: "start", behavior: "smooth" });
  on.box(stages[active], Number(row.dataset.number));
}
find("tbody").addEventListener("click", (event) => chooseRow(event.target.closest("tr")));
find("tbody").addEventListener("keydown", (event) => {
  const row = event.target.closest("tr"), next = { ArrowDown: row?.nextElementSibling, ArrowUp: row?.previousElementSibling }[event.key];
  if (event.key === "Enter" || event.key === " ") chooseRow(row);
  else if (next) next.focus();
  else return;
  event.preventDefault();
});
root.addEventListener("dragover", (event) => { event.preventDefault(); root.setAttribute("data-drop", ""); });
root.addEventListener("dragleave", () => root.removeAttribute("data-drop"));
root.addEventListener("drop", (event) => { event.preventDefault(); root.removeAttribute("data-drop"); hand(event.dataTransfer.files[0]); });
window.addEventListener("paste", (event) => hand(event.clipboardData?.files[0]));

find(".sd-examples").replaceChildren(...(props.examples || []).map((example, i) => {
  const button = make("button", { type: "button", title: example.name, "aria-label": `Example: ${example.name}`, "aria-pressed": "false" },
    make("img", { src: example.url || null, alt: "" }));
  button.addEventListener("click", () => pick(i));
  return button;
}));
drawControls();
watch("value", received);
if (props.value) received();
else if (props.examples?.length) pick(0);
