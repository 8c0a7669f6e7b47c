// The page: send an image to /predict, show the boxes of each model, filter them by score, save results.

import { draw, shared } from "./boxes.js";
import { text, translate } from "./texts.js";

const LOWEST = 0.01; // scores that are asked for; the slider hides the others

const get = (id) => document.getElementById(id);
const panels = [];
let picture = null; // {file, image} that is shown
let turn = 0; // number of the newest image; answers for older ones are dropped

class Panel {
  constructor(model) {
    this.model = model;
    this.colours = model.classes.map((entry) => entry.colour);
    this.answer = null;
    this.marked = null;
    this.root = get("panel").content.firstElementChild.cloneNode(true);
    translate(this.root);
    this.find = (selector) => this.root.querySelector(selector);
    this.find("h2").textContent = model.name;
    this.slider = this.find("input[type=range]");
    this.slider.value = model.threshold;
    this.slider.addEventListener("input", showAll);
    this.find(".names input").addEventListener("change", () => this.show());
    for (const button of this.root.querySelectorAll("[data-download]")) {
      button.addEventListener("click", () => this.save(button.dataset.download));
    }
  }

  /** Detections with at least the score of the slider. */
  get detections() {
    const threshold = Number(this.slider.value);
    return this.answer ? this.answer.detections.filter((found) => found.score >= threshold) : [];
  }

  show() {
    this.find("output").textContent = Number(this.slider.value).toFixed(2);
    if (!this.answer) return;
    const { width, height } = this.answer;
    const detections = this.detections;
    const other = panels.find((panel) => panel !== this && panel.answer);
    const both = other ? shared(detections, other.detections) : null;
    draw(this.find("canvas"), {
      width,
      height,
      image: picture.image,
      detections,
      colours: this.colours,
      names: this.find(".names input").checked,
      isDashed: (found) => both !== null && !both.has(found),
      marked: this.marked,
    });
    this.showCounts(detections);
    this.showRows(detections);
    this.find(".time").textContent = text("time", { ms: Math.round(this.answer.milliseconds) });
  }

  showCounts(detections) {
    const items = [];
    for (const entry of this.model.classes) {
      const count = detections.filter((found) => found.label === entry.label).length;
      if (!count) continue;
      const item = document.createElement("li");
      const colour = document.createElement("i");
      const number = document.createElement("b");
      colour.style.background = entry.colour;
      number.textContent = count;
      item.append(colour, entry.name, number);
      items.push(item);
    }
    if (!items.length) items.push(text("none"));
    this.find(".classes").replaceChildren(...items);
  }

  showRows(detections) {
    const rows = detections.map((found) => {
      const row = document.createElement("tr");
      const box = found.box.map((value) => value.toFixed(1)).join(", ");
      for (const value of [found.name, found.score.toFixed(3), box]) {
        row.insertCell().textContent = value;
      }
      row.addEventListener("mouseenter", () => this.mark(found));
      row.addEventListener("mouseleave", () => this.mark(null));
      return row;
    });
    // a row under the mouse stays there while it is marked
    if (this.marked === null) this.find("tbody").replaceChildren(...rows);
  }

  mark(found) {
    this.marked = found;
    const isLeft = found === null;
    if (isLeft) this.marked = undefined; // keep the rows
    this.show();
    if (isLeft) this.marked = null;
  }

  async save(kind) {
    if (!this.answer) return;
    const stem = picture.file.name.replace(/\.[^.]*$/, "") || "image";
    const name = panels.length > 1 ? `${stem}.${this.model.model}` : stem;
    if (kind === "picture") {
      const blob = await new Promise((done) => this.find("canvas").toBlob(done, "image/png"));
      download(`${name}.png`, blob);
    } else if (kind === "json") {
      const content = {
        image: picture.file.name,
        model: this.model.name,
        threshold: Number(this.slider.value),
        width: this.answer.width,
        height: this.answer.height,
        detections: this.detections,
      };
      download(`${name}.json`, new Blob([JSON.stringify(content, null, 2)], { type: "application/json" }));
    } else {
      download(`${name}.csv`, new Blob([csv(this.detections)], { type: "text/csv" }));
    }
  }
}

/** Return detections as CSV, with the columns of Prediction.to_dataframe. */
function csv(detections) {
  const lines = ["x_min,y_min,x_max,y_max,score,label,category_id,name"];
  for (const found of detections) {
    const quoted = `"${found.name.replaceAll('"', '""')}"`;
    lines.push([...found.box, found.score, found.label, found.category_id, quoted].join(","));
  }
  return lines.join("\n") + "\n";
}

function download(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function showAll() {
  for (const panel of panels) {
    panel.marked = null; // the rows change, even under the mouse
    panel.show();
  }
}

function say(message, isBad = false) {
  get("message").hidden = !message;
  get("message").textContent = message;
  get("message").classList.toggle("bad", isBad);
}

/** Return the answer of one model to an image; throw an error with a sentence for people. */
async function ask(file, model) {
  const form = new FormData();
  form.append("image", file);
  form.append("threshold", LOWEST);
  form.append("model", model.model);
  let response;
  try {
    response = await fetch("predict", { method: "POST", body: form });
  } catch {
    throw new Error(text("offline"));
  }
  const status = `${response.status} ${response.statusText}`;
  const answer = await response.json().catch(() => ({ error: status })); // a proxy answers with a page
  if (answer.error) throw new Error(text("refused", { error: answer.error }));
  return answer;
}

async function open(file) {
  const own = ++turn;
  say(text("working"));
  for (const panel of panels) panel.root.classList.add("busy");
  const image = await createImageBitmap(file).catch(() => null);
  try {
    const answers = [];
    for (const panel of panels) {
      answers.push(await ask(file, panel.model)); // one after the other, as the server predicts
      if (own !== turn) return;
    }
    picture = { file, image };
    panels.forEach((panel, number) => {
      panel.answer = answers[number];
    });
    get("panels").hidden = false;
    get("legend").hidden = panels.length < 2;
    get("drop").classList.add("small");
    showAll();
    say(image ? "" : text("unseen"));
  } catch (error) {
    if (own === turn) say(error.message, true);
  } finally {
    if (own === turn) for (const panel of panels) panel.root.classList.remove("busy");
  }
}

function listen() {
  const drop = get("drop");
  get("file").addEventListener("change", (event) => {
    const file = event.target.files[0];
    if (file) open(file);
    event.target.value = "";
  });
  drop.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") get("file").click();
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  document.addEventListener("dragleave", () => drop.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    const file = event.dataTransfer.files[0];
    if (file) open(file);
  });
  document.addEventListener("paste", (event) => {
    const file = event.clipboardData.files[0];
    if (file) open(file);
  });
}

async function start() {
  translate(document);
  get("panels").hidden = true;
  const about = await (await fetch("models")).json();
  for (const model of about.models) {
    const panel = new Panel(model);
    panels.push(panel);
    get("panels").append(panel.root);
  }
  const names = about.models.map((model) => model.name).join("  ·  ");
  const classes = about.models[0].classes.length;
  get("about").textContent = panels.length > 1 ? names : text("about", { models: names, classes });
  get("limits").textContent = text("limits", {
    mb: Math.round(about.max_bytes / 1e6),
    mp: Math.round(about.max_pixels / 1e6),
  });
  listen();
  document.body.dataset.ready = "yes";
}

start().catch(() => say(text("offline"), true));
