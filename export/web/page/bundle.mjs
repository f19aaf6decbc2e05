// The bundle beside the page: its manifest, and its files, each compared with the manifest.

const MANIFEST = "manifest.json";

async function fetched(url) {
  const answer = await fetch(url);
  if (!answer.ok) {
    throw new Error(`${url.pathname} is missing (status ${answer.status}): copy the page again`);
  }
  return new Uint8Array(await answer.arrayBuffer());
}

const parsed = (bytes) => JSON.parse(new TextDecoder().decode(bytes));

// Only a page from this machine or by HTTPS has SHA-256; sizes are compared everywhere.
async function check(name, bytes, expected) {
  let right = bytes.length === expected.size;
  if (right && globalThis.crypto?.subtle) {
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    const text = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
    right = text === expected.sha256;
  }
  if (!right) throw new Error(`${name} is not what the manifest says: copy the page again`);
}

/**
 * The bundle at a URL that ends with a slash: its manifest, its parsed tokenizer.json and the bytes
 * of its graphs by name. `progress` is called with the bytes that are there, and all there will be.
 */
export async function openBundle(url, progress) {
  const manifest = parsed(await fetched(new URL(MANIFEST, url)));
  const names = ["tokenizer.json", "text.onnx", "image.onnx"];
  const total = names.reduce((sum, name) => sum + manifest.files[name].size, 0);
  let done = 0;
  const files = {};
  await Promise.all(
    names.map(async (name) => {
      files[name] = await fetched(new URL(name, url));
      await check(name, files[name], manifest.files[name]);
      progress((done += files[name].length), total);
    }),
  );
  const { "tokenizer.json": tokenizer, ...graphs } = files;
  return { manifest, tokenizer: parsed(tokenizer), graphs };
}
