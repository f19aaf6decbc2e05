// The page: what the user does goes to the worker, what the worker finds is drawn.

import { overlay, stencil } from "./overlay.mjs";
import { decoded } from "./picture.mjs";

const QUIET = 250; // milliseconds without a key before a sentence is used

const element = (id) => document.getElementById(id);
const [sentence, file, camera, save] = ["sentence", "file", "camera", "save"].map(element);
const [stage, picture, mask] = ["stage", "picture", "mask"].map(element);
const [status, timings, facts, video] = ["status", "timings", "facts", "video"].map(element);

const worker = new Worker(new URL(`worker.mjs${location.search}`, import.meta.url), {
  type: "module",
});
let ready = false;
let running = false; // the worker has a sentence of ours
let waiting = false; // the newest sentence or picture is still to be sent
let number = 0; // of the newest question
let shown = null; // { mask, width, height } of the newest answer
let stream = null; // the camera's, while it is on
let timer; // since the last key

function say(text, wrong = false) {
  status.textContent = text;
  status.classList.toggle("wrong", wrong);
}

// Of what was typed and seen while the worker was busy, only the newest is asked.
async function ask() {
  clearTimeout(timer);
  waiting = true;
  mask.classList.add("stale");
  if (!ready || running || picture.width === 0) return;
  if (sentence.value.trim() === "") {
    waiting = false;
    clear();
    say("Say what to segment.");
    return;
  }
  running = true;
  waiting = false;
  if (stream !== null) await frame();
  document.body.dataset.state = "running";
  worker.postMessage({ sentence: sentence.value, number: ++number });
}

function clear() {
  shown = null;
  save.disabled = true;
  mask.getContext("2d").clearRect(0, 0, mask.width, mask.height);
  timings.hidden = true;
}

// Shows a picture and gives it to the worker.
function use(bitmap) {
  for (const canvas of [picture, mask]) {
    if (canvas.width !== bitmap.width) canvas.width = bitmap.width; // which empties it
    if (canvas.height !== bitmap.height) canvas.height = bitmap.height;
  }
  picture.getContext("2d").drawImage(bitmap, 0, 0);
  stage.classList.remove("empty");
  worker.postMessage({ picture: bitmap }, [bitmap]);
}

async function open(chosen) {
  try {
    const bitmap = await decoded(chosen);
    stopCamera();
    clear();
    use(bitmap);
    ask();
  } catch (error) {
    say(error.message, true);
  }
}

async function frame() {
  use(await createImageBitmap(video));
}

async function startCamera() {
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    say(`The camera cannot be used (${error.message}): allow it, or open a picture.`, true);
    return;
  }
  video.srcObject = stream;
  await video.play();
  camera.setAttribute("aria-pressed", "true");
  clear();
  await frame();
  ask();
}

function stopCamera() {
  for (const track of stream?.getTracks() ?? []) track.stop();
  stream = null;
  camera.setAttribute("aria-pressed", "false");
}

function draw({ mask: pixels, width, height }) {
  mask.getContext("2d").putImageData(overlay(pixels, width, height), 0, 0);
  mask.classList.remove("stale");
}

function report({ mask: pixels, width, height, score, noTarget, dropped, timings: times }) {
  const share = pixels.reduce((sum, one) => sum + one, 0) / (width * height);
  const parts = [];
  if (share > 0) {
    parts.push(`${percent(share)} of the picture, mean probability ${percent(score)}`);
  } else {
    parts.push("Nothing in the picture is meant");
  }
  if (noTarget !== null) parts.push(`${percent(noTarget)} likely that nothing is`);
  if (dropped > 0) parts.push(`the sentence is too long, ${dropped} of its tokens were dropped`);
  say(`${parts.join("; ")}.`);
  timings.replaceChildren(
    ...Object.entries(times).map(([name, time]) => {
      const row = document.createElement("div");
      const [term, value] = [document.createElement("dt"), document.createElement("dd")];
      term.textContent = name;
      value.textContent = `${time.toFixed(time < 10 ? 1 : 0)} ms`;
      row.append(term, value);
      return row;
    }),
  );
  timings.hidden = false;
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

function describe({ preset, precision, size, provider, reason, threads }) {
  const cores = threads === 1 ? "one thread" : `${threads} threads`;
  const runs = provider === "webgpu" ? "WebGPU" : `WebAssembly on ${cores} (${reason})`;
  facts.textContent = `${preset}, ${precision}, ${size.join("×")} pixels; runs by ${runs}.`;
  document.body.dataset.provider = provider;
}

function answered({ result, error }, current) {
  running = false;
  if (error !== undefined) {
    clear();
    say(error, true);
  } else if (current && !(stream === null && waiting)) {
    shown = result;
    save.disabled = false;
    draw(result);
    report(result);
  }
  if (!waiting) document.body.dataset.state = error === undefined ? "done" : "failed";
  if (waiting || (stream !== null && error === undefined)) ask();
}

worker.onmessage = ({ data }) => {
  if (document.body.dataset.state === "failed" && !ready) return; // what was still under way
  if (data.progress !== undefined) {
    const { done, total } = data.progress;
    say(`Loading the model: ${(done / 1e6).toFixed(1)} of ${(total / 1e6).toFixed(1)} MB …`);
  } else if (data.ready !== undefined) {
    ready = true;
    describe(data.ready);
    document.body.dataset.state = "ready";
    say(picture.width === 0 ? "Ready: open a picture, or use the camera." : "Ready.");
    if (waiting) ask();
  } else if (data.number === undefined) {
    say(`The model cannot be opened: ${data.error}`, true);
    document.body.dataset.state = "failed";
  } else {
    answered(data, data.number === number);
  }
};
worker.onerror = (event) => {
  say(`The page cannot run here: ${event.message ?? "its worker does not start"}.`, true);
  document.body.dataset.state = "failed";
};

sentence.addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(ask, QUIET);
});
file.addEventListener("change", () => {
  if (file.files.length > 0) open(file.files[0]);
  file.value = ""; // the same file may be opened again
});
camera.addEventListener("click", () => (stream === null ? startCamera() : stopCamera()));
save.addEventListener("click", async () => {
  const { mask: pixels, width, height } = shown;
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").putImageData(stencil(pixels, width, height), 0, 0);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await canvas.convertToBlob({ type: "image/png" }));
  link.download = "mask.png";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    stage.classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length > 0) open(event.dataTransfer.files[0]);
  });
}
