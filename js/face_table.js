// The table of faces under "DIIR Face Repair" and "Detect Faces": what a run found, and a tick for each face that
// writes the node's input "which". It holds nothing of its own: the choice is saved with that input.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const NODES = new Set(["LikenessDiirFaceRepair", "LikenessDetectFaces"]);
const OUTPUT = "likeness_faces";
const CHOICE = "which";
// heights: of the table before a run, of its head, of a face; so many faces are in view, further ones scroll
const EMPTY = 96, HEAD = 34, ROW = 52, MOST = 4;

// The host translates nodes and inputs from locales/, but not what an extension draws.
const WORDS = {
  zh: {
    "Include this face": "包含这张脸",
    "Similarity to the person, before and after": "修复前后与此人的相似度",
    "by the rules": "按规则",
    "Forget the ticks": "清除勾选",
    "No face was found.": "没有找到人脸。",
    "face": "张人脸",
    "faces": "张人脸",
    "Faces appear here after a run.": "运行后，人脸会显示在这里。",
  },
};
const say = (text) => WORDS[app.extensionManager?.setting?.get("Comfy.Locale")]?.[text] ?? text;

const STYLE = `
.likeness-faces { overflow: auto; height: 100%; font: 11px sans-serif; color: var(--input-text, #ddd);
  background: var(--comfy-input-bg, #222); border-radius: 4px; box-sizing: border-box; padding: 4px; }
.likeness-faces table { border-collapse: collapse; width: 100%; }
.likeness-faces td, .likeness-faces th { padding: 2px 4px; text-align: left; vertical-align: middle; font-weight: normal; }
.likeness-faces img { display: block; height: 44px; border-radius: 3px; }
.likeness-faces .quiet { opacity: 0.65; }
.likeness-faces button { font: inherit; color: inherit; background: none; border: 1px solid currentColor;
  border-radius: 3px; cursor: pointer; padding: 1px 6px; }`;

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function picture(saved) {
  if (!saved) return "";
  const query = new URLSearchParams({ filename: saved.filename, subfolder: saved.subfolder, type: saved.type });
  return element("img", { src: api.apiURL(`/view?${query}`), alt: "" });
}

const rounded = (value) => (typeof value === "number" ? value.toFixed(2) : "");

/** The text of "which" that stands for the ticked faces: "1, 3", or "2:1" where there are several pictures. */
function choiceOf(faces, ticked) {
  const several = faces.some((face) => face.picture > 1);
  const names = faces.filter((_, i) => ticked[i]).map((face) => (several ? `${face.picture}:${face.number}` : `${face.number}`));
  return names.length ? names.join(", ") : "none";
}

function choose(node, text) {
  const widget = node.widgets?.find((one) => one.name === CHOICE);
  if (!widget) return;
  widget.value = text;
  widget.callback?.(text);
  node.setDirtyCanvas?.(true, true);
}

function row(face, several, tick) {
  const box = element("input", { type: "checkbox", checked: face.chosen, title: say("Include this face") });
  box.addEventListener("change", () => tick(box.checked));
  const name = several ? `${face.picture}:${face.number}` : `${face.number}`;
  const likeness = [face.before_similarity, face.similarity].map(rounded).filter(Boolean).join(" \u2192 ");
  const told = element("td", { className: "quiet", textContent: [face.person, face.note].filter(Boolean).join(", ") });
  return element(
    "tr",
    {},
    element("td", {}, box),
    element("td", { textContent: name }),
    element("td", {}, picture(face.before)),
    element("td", {}, picture(face.after)),
    element("td", { textContent: `${Math.round(face.size)} px` }),
    element("td", { textContent: likeness, title: say("Similarity to the person, before and after") }),
    told,
  );
}

function show(node, root, faces) {
  const several = faces.some((face) => face.picture > 1);
  const ticked = faces.map((face) => face.chosen);
  const rows = faces.map((face, i) =>
    row(face, several, (on) => {
      ticked[i] = on;
      choose(node, choiceOf(faces, ticked));
    }),
  );
  const again = element("button", { textContent: say("by the rules"), title: say("Forget the ticks") });
  again.addEventListener("click", () => choose(node, ""));
  const title = faces.length ? `${faces.length} ${say(faces.length > 1 ? "faces" : "face")} ` : say("No face was found.");
  root.replaceChildren(element("div", {}, title, faces.length ? again : ""), element("table", {}, ...rows));
}

function addTable(node) {
  const root = element("div", { className: "likeness-faces" }, element("span", { className: "quiet", textContent: say("Faces appear here after a run.") }));
  // the table is no input: neither the saved workflow nor the prompt knows of it
  const rows = root.getElementsByTagName("tr"); // always those that are shown
  const getMinHeight = () => Math.max(EMPTY, HEAD + ROW * Math.min(rows.length, MOST));
  const widget = node.addDOMWidget("faces_table", "likeness_faces_table", root, { serialize: false, hideOnZoom: false, getMinHeight });
  widget.serialize = false;
  const before = node.onExecuted;
  node.onExecuted = function (output) {
    before?.apply(this, arguments);
    if (!Array.isArray(output?.[OUTPUT])) return;
    show(this, root, output[OUTPUT]);
    const least = this.computeSize()[1];
    if (this.size[1] < least) this.setSize([this.size[0], least]);
  };
}

app.registerExtension({
  name: "Likeness.FaceTable",
  setup() {
    document.head.append(element("style", { textContent: STYLE }));
  },
  nodeCreated(node) {
    if (NODES.has(node.constructor.comfyClass)) addTable(node);
  },
});
