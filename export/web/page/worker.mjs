// All that takes time, beside the page: it opens the bundle and answers the page's pictures.
//
// The page sends { picture: ImageBitmap } and { sentence, number }. It is sent { progress },
// { ready }, { result, number } and { error, number }.

import { openBundle } from "./bundle.mjs";
import { pictureOf } from "./picture.mjs";
import { Predictor } from "./predictor.mjs";

const BUNDLE = new URL("bundle/", self.location);
const ORT = new URL("onnxruntime-web/", self.location);

// WebGPU has a build of its own, twice as large: only a browser that has a GPU for it loads it.
async function onnxruntime(provider) {
  const name = provider === "webgpu" ? "ort.webgpu.min.mjs" : "ort.wasm.min.mjs";
  const ort = await import(new URL(name, ORT));
  ort.env.wasm.wasmPaths = ORT.href;
  ort.env.logLevel = "error";
  return ort;
}

// Why WebGPU cannot be used here, or null.
async function withoutGpu() {
  if (!navigator.gpu) return "this browser has no WebGPU";
  const adapter = await navigator.gpu.requestAdapter();
  if (adapter === null) return "there is no GPU for WebGPU";
  const fallback = adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter;
  return fallback ? "WebGPU would run on the processor" : null;
}

async function open(wanted) {
  const bundle = await openBundle(BUNDLE, (done, total) => {
    postMessage({ progress: { done, total } });
  });
  const chosen = "?provider=wasm asks for it";
  let reason = wanted === "wasm" ? chosen : wanted === "webgpu" ? null : await withoutGpu();
  let provider = "wasm";
  let opened;
  if (reason === null) {
    try {
      opened = await Predictor.open(bundle, await onnxruntime("webgpu"), "webgpu");
      provider = "webgpu";
    } catch (error) {
      reason = `WebGPU does not run this model: ${error.message}`;
    }
  }
  let threads = 0;
  if (opened === undefined) {
    const ort = await onnxruntime("wasm");
    opened = await Predictor.open(bundle, ort, "wasm");
    threads = self.crossOriginIsolated ? ort.env.wasm.numThreads : 1;
  }
  const { model, preprocessing, precision } = bundle.manifest;
  const facts = { provider, reason, threads, precision };
  postMessage({ ready: { ...facts, preset: model.preset, size: preprocessing.size } });
  return opened;
}

const opening = open(new URLSearchParams(self.location.search).get("provider"));
opening.catch((error) => postMessage({ error: error.message }));

let current; // the newest picture, prepared when it is first used
let work = Promise.resolve(); // one thing after the other

function use(bitmap) {
  current?.bitmap?.close();
  current = { bitmap, prepared: null };
}

async function answer(sentence, number) {
  const predictor = await opening;
  const picture = current;
  const started = performance.now();
  if (picture.prepared === null) picture.prepared = predictor.prepare(pictureOf(picture.bitmap));
  const preprocess = performance.now() - started;
  const { timings, ...result } = await predictor.predict(picture.prepared, sentence);
  const total = performance.now() - started;
  const [height, width] = picture.prepared.size;
  const message = { ...result, width, height, timings: { preprocess, ...timings, total } };
  postMessage({ result: message, number }, [result.mask.buffer]);
}

onmessage = ({ data: { picture, sentence, number } }) => {
  work = work.then(async () => {
    if (picture !== undefined) use(picture);
    if (sentence === undefined) return;
    try {
      await answer(sentence, number);
    } catch (error) {
      postMessage({ error: error.message, number });
    }
  });
};
