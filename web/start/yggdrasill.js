/**
 * The editor extension: what it registers with ComfyUI.
 *
 * ComfyUI loads every .js file of this folder with the page, so only what must be there from the beginning stands here. The modules in
 * the folder above are loaded when they are first needed: this server gives them as /yggdrasill/web/NAME.js. Nothing is asked of the
 * server before one of our nodes is there or a command is given.
 */
import { REMOTE_GRAPH, RUN_GRAPH, shapeDefinition } from "./definition.js";

const { app } = window.comfyAPI.app;

const SERVE = "Yggdrasill.ServeWorkflow";
const ADD_ENDPOINT = "Yggdrasill.AddEndpoint";
const RUN_ON = "Yggdrasill.RunOn";
const PREFLIGHT = "Yggdrasill.Preflight";
/** The module with the behaviour of each class of nodes. */
const BEHAVIOUR = {
  [REMOTE_GRAPH]: "remote_graph",
  [RUN_GRAPH]: "run_graph",
  YggdrasillGraphInput: "port_nodes",
  YggdrasillGraphOutput: "port_nodes",
};

/** Modules that were loaded, by name. */
const loaded = new Map();

/**
 * @param {string} name of a module in the folder above
 * @returns {Promise<object | undefined>} nothing if this server does not have it; the user is told
 */
async function load(name) {
  try {
    loaded.set(name, await import(`../../yggdrasill/web/${name}.js`));
  } catch (error) {
    const detail = `A part of the editor's extension could not be loaded: ${error.message}`;
    app.extensionManager.toast.add({ severity: "error", summary: "Yggdrasill", detail, life: 20_000 });
  }
  return loaded.get(name);
}

const serve = async () => (await load("serving"))?.serveWorkflow(app);
const addEndpoint = async () => (await load("endpoints"))?.addEndpoint(app);
const runOn = async () => (await placing())?.runOn(app);
const preflight = async () => (await load("preflight"))?.openPreflight(app);
const serveItem = () => ({ content: "Serve this workflow", callback: serve });

/** What shows and changes where parts run; loaded when somebody is at the page. */
let begun = null;
function placing() {
  begun ??= load("placing").then(async (module) => (await module?.begin(app), module));
  return begun;
}

/** What most nodes say: nothing, and so it is not drawn. */
let noSign = null;
/** What a node says of where it runs. It is read again when `yggdrasillSign` changes; `badges.js` has the rest. */
function signOf(node) {
  void node.outputs?.yggdrasillSign;
  return loaded.get("placing")?.signOf(node) ?? (noSign ??= new window.LGraphBadge({ text: "" }));
}

const TAB = {
  id: "yggdrasill",
  icon: "pi pi-share-alt",
  title: "Yggdrasill",
  tooltip: "Yggdrasill: which machine runs what",
  type: "custom",
  render: async (place) => (await load("sidebar"))?.openTab(app, place),
  destroy: () => loaded.get("sidebar")?.closeTab(),
};

const SETTINGS = [
  {
    id: "Yggdrasill.Badges",
    category: ["Yggdrasill", "Editor", "Badges"],
    name: "Show on nodes which endpoint runs them",
    type: "boolean",
    defaultValue: true,
    onChange: (shown) => loaded.get("placing")?.redraw(app, shown),
  },
  {
    id: "Yggdrasill.Refresh",
    category: ["Yggdrasill", "Editor", "Refresh"],
    name: "Keep the sidebar up to date",
    tooltip: "While its tab is open, endpoints and jobs are asked again every few seconds",
    type: "boolean",
    defaultValue: true,
  },
  {
    id: "Yggdrasill.Queue",
    category: ["Yggdrasill", "This server", "Queue"],
    name: "Calls of other machines",
    tooltip: "How they stand to prompts of this server's own; kept in settings.yaml of this server",
    type: () => {
      const place = document.createElement("div");
      void load("server_settings").then((module) => module?.showQueuePolicy(app, place));
      return place;
    },
    defaultValue: "",
  },
];

/**
 * @param {object} workflow as its file has it
 * @returns {string[]} the modules that its nodes need
 */
function modulesFor(workflow) {
  const graphs = [workflow, ...(workflow.definitions?.subgraphs ?? [])];
  const found = graphs.flatMap(({ nodes }) => nodes ?? []).map(({ type }) => BEHAVIOUR[type]);
  return [...new Set(found)].filter(Boolean);
}

app.registerExtension({
  name: "Yggdrasill",
  commands: [
    { id: SERVE, label: "Serve this workflow", icon: "pi pi-share-alt", function: serve },
    { id: ADD_ENDPOINT, label: "Add an endpoint", icon: "pi pi-plus", function: addEndpoint },
    { id: RUN_ON, label: "Run the selection on", icon: "pi pi-share-alt", function: runOn },
    { id: PREFLIGHT, label: "Preflight", icon: "pi pi-check-square", function: preflight },
  ],
  menuCommands: [{ path: ["Yggdrasill"], commands: [SERVE, ADD_ENDPOINT, RUN_ON, PREFLIGHT] }],
  settings: SETTINGS,
  setup() {
    app.extensionManager.registerSidebarTab(TAB);
    for (const sign of ["pointermove", "pointerdown", "keydown"]) window.addEventListener(sign, placing, { once: true, passive: true });
  },
  getCanvasMenuItems: (canvas) => [...(loaded.get("placing")?.canvasItems(canvas, app) ?? []), null, serveItem()],
  getNodeMenuItems: (node) => [
    ...(loaded.get("placing")?.nodeItems(node, app) ?? []),
    ...(BEHAVIOUR[node.comfyClass] === "port_nodes" ? [null, serveItem()] : []),
  ],
  getSelectionToolboxCommands: (item) => loaded.get("placing")?.toolboxCommands(item, app) ?? [],
  beforeRegisterNodeDef(_nodeType, definition) {
    if (definition.name === REMOTE_GRAPH || definition.name === RUN_GRAPH) shapeDefinition(definition);
  },
  async beforeConfigureGraph(workflow) {
    await Promise.all(modulesFor(workflow).map(load));
  },
  afterConfigureGraph: () => loaded.get("placing")?.redraw(app),
  nodeCreated(node) {
    node.badges.push(() => signOf(node));
    const name = BEHAVIOUR[node.comfyClass];
    if (!name) return;
    const module = loaded.get(name);
    if (module) module.attach(node, app);
    else void load(name).then((late) => late?.attach(node, app));
  },
  loadedGraphNode(node) {
    if (node.comfyClass === REMOTE_GRAPH) void loaded.get("remote_graph")?.check(node);
  },
});
