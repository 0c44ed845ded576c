/**
 * The editor extension: everything that it registers with ComfyUI.
 *
 * ComfyUI loads every .js file of this folder with the page, so it contains only what is needed from the beginning. The modules in the parent
 * folder are loaded when they are first needed, from /api/yggdrasill/web/NAME.js. No request is sent to the server before one of our nodes exists,
 * a command is given, or the user interacts with the page.
 */
import { REMOTE_GRAPH, RUN_GRAPH, shapeDefinition } from "./definition.js";

const { app } = window.comfyAPI.app;

const SERVE = "Yggdrasill.ServeWorkflow";
const ADD_ENDPOINT = "Yggdrasill.AddEndpoint";
const RUN_ON = "Yggdrasill.RunOn";
const PREFLIGHT = "Yggdrasill.Preflight";
/** The module with the behaviour of each node class. */
const BEHAVIOUR = {
  [REMOTE_GRAPH]: "remote_graph",
  [RUN_GRAPH]: "run_graph",
  YggdrasillGraphInput: "port_nodes",
  YggdrasillGraphOutput: "port_nodes",
};

/** The modules that were loaded, by name. */
const loaded = new Map();

/**
 * @param {string} name of a module in the parent folder
 * @returns {Promise<object | undefined>} undefined if it cannot be loaded; the user is notified
 */
async function load(name) {
  try {
    loaded.set(name, await import(app.api.apiURL(`/yggdrasill/web/${name}.js`)));
  } catch (error) {
    const detail = `A module of the editor extension could not be loaded: ${error.message}`;
    app.extensionManager.toast.add({ severity: "error", summary: "Yggdrasill", detail, life: 20_000 });
  }
  return loaded.get(name);
}

const serve = async () => (await load("serving"))?.serveWorkflow(app);
const addEndpoint = async () => (await load("endpoints"))?.addEndpoint(app);
const runOn = async () => (await loadPlacement())?.runOn(app);
const preflight = async () => (await load("preflight"))?.openPreflight(app);
const serveItem = () => ({ content: "Serve this workflow", callback: serve });

/** The module that shows and changes placements; loaded at the first interaction with the page. */
let placementModule = null;
function loadPlacement() {
  placementModule ??= load("canvas_placement").then(async (module) => (await module?.start(app), module));
  return placementModule;
}

/** The badge of nodes without a placement; its text is empty, so it is not drawn. */
let emptyBadge = null;
/** The badge with a node's placement. It is read again when `yggdrasillBadge` changes; see `badges.js`. */
function placementBadge(node) {
  void node.outputs?.yggdrasillBadge;
  return loaded.get("canvas_placement")?.badgeOf(node) ?? (emptyBadge ??= new window.LGraphBadge({ text: "" }));
}

/** The badge of a node whose part was refused; see `refusal.js`. */
function refusalBadge(node) {
  void node.outputs?.yggdrasillRefusal;
  return loaded.get("refusal")?.badgeOf(node) ?? (emptyBadge ??= new window.LGraphBadge({ text: "" }));
}

/** The parts that run on this server in the next prompt, whatever their placement. @type {string[]} */
let partsHere = [];

/** Show why a prompt with placed parts is refused, and post the next one as the user has chosen. */
function watchPrompts() {
  const { api } = app;
  const { queuePrompt, fetchApi } = api;
  api.queuePrompt = async function (...rest) {
    loaded.get("refusal")?.clear(app);
    try {
      return await queuePrompt.apply(this, rest);
    } catch (error) {
      if (JSON.stringify(error?.response?.node_errors ?? {}).includes("yggdrasill_")) (await load("refusal"))?.showRefusal(app, error.response, runHere);
      throw error;
    }
  };
  api.fetchApi = function (route, options) {
    const isPrompt = partsHere.length && route === "/prompt" && options?.method === "POST";
    return fetchApi.call(this, route, isPrompt ? { ...options, body: withPartsHere(options.body) } : options);
  };
  api.addEventListener("execution_error", async ({ detail }) => {
    if (detail?.exception_type?.startsWith("yggdrasill.errors.")) (await load("refusal"))?.showFailure(app, detail);
  });
}

async function runHere(parts) {
  partsHere = parts;
  try {
    await app.queuePrompt(0, 1);
  } finally {
    partsHere = [];
  }
}

function withPartsHere(text) {
  const body = JSON.parse(text);
  const graphs = Object.fromEntries(partsHere.map((name) => [name, { endpoint: "local" }]));
  const { yggdrasill } = body.extra_data ?? {};
  body.extra_data = { ...body.extra_data, yggdrasill: { ...yggdrasill, graphs: { ...yggdrasill?.graphs, ...graphs } } };
  return JSON.stringify(body);
}

const TAB = {
  id: "yggdrasill",
  icon: "pi pi-share-alt",
  title: "Yggdrasill",
  tooltip: "Yggdrasill: endpoints, placed parts and jobs",
  type: "custom",
  render: async (container) => (await load("sidebar"))?.openTab(app, container),
  destroy: () => loaded.get("sidebar")?.closeTab(),
};

const SETTINGS = [
  {
    id: "Yggdrasill.Badges",
    category: ["Yggdrasill", "Editor", "Badges"],
    name: "Show on each node which endpoint runs it",
    type: "boolean",
    defaultValue: true,
    onChange: (shown) => loaded.get("canvas_placement")?.redraw(app, shown),
  },
  {
    id: "Yggdrasill.Refresh",
    category: ["Yggdrasill", "Editor", "Refresh"],
    name: "Keep the sidebar up to date",
    tooltip: "While its tab is open, endpoints and jobs are refreshed every few seconds",
    type: "boolean",
    defaultValue: true,
  },
  {
    id: "Yggdrasill.Queue",
    category: ["Yggdrasill", "This server", "Queue"],
    name: "Calls from other machines",
    tooltip: "How they are queued relative to this server's own prompts; stored in settings.yaml of this server",
    type: () => {
      const container = document.createElement("div");
      void load("server_settings").then((module) => module?.showQueuePolicy(app, container));
      return container;
    },
    defaultValue: "",
  },
];

/**
 * @param {object} workflow as saved in its file
 * @returns {string[]} the modules that its nodes need
 */
function modulesFor(workflow) {
  const graphs = [workflow, ...(workflow.definitions?.subgraphs ?? [])];
  const found = graphs.flatMap(({ nodes }) => nodes ?? []).map(({ type }) => BEHAVIOUR[type]);
  return [...new Set(found)].filter(Boolean);
}

const hasParts = (graph) => graph._groups.length > 0 || graph._nodes.some((node) => node.isSubgraphNode?.());

app.registerExtension({
  name: "Yggdrasill",
  commands: [
    { id: SERVE, label: "Serve this workflow", icon: "pi pi-share-alt", function: serve },
    { id: ADD_ENDPOINT, label: "Add an endpoint", icon: "pi pi-plus", function: addEndpoint },
    { id: RUN_ON, label: "Run the selection on an endpoint", icon: "pi pi-share-alt", function: runOn },
    { id: PREFLIGHT, label: "Preflight", icon: "pi pi-check-square", function: preflight },
  ],
  menuCommands: [{ path: ["Yggdrasill"], commands: [SERVE, ADD_ENDPOINT, RUN_ON, PREFLIGHT] }],
  settings: SETTINGS,
  setup() {
    app.extensionManager.registerSidebarTab(TAB);
    watchPrompts();
    for (const type of ["pointermove", "pointerdown", "keydown"]) window.addEventListener(type, loadPlacement, { once: true, passive: true });
  },
  getCanvasMenuItems: (canvas) => [...(loaded.get("canvas_placement")?.canvasItems(canvas, app) ?? []), null, serveItem()],
  getNodeMenuItems: (node) => [
    ...(loaded.get("canvas_placement")?.nodeItems(node, app) ?? []),
    ...(BEHAVIOUR[node.comfyClass] === "port_nodes" ? [null, serveItem()] : []),
  ],
  getSelectionToolboxCommands: (item) => loaded.get("canvas_placement")?.toolboxCommands(item, app) ?? [],
  beforeRegisterNodeDef(_nodeType, definition) {
    if (definition.name === REMOTE_GRAPH || definition.name === RUN_GRAPH) shapeDefinition(definition);
  },
  async beforeConfigureGraph(workflow) {
    await Promise.all(modulesFor(workflow).map(load));
  },
  async afterConfigureGraph() {
    // before ComfyUI looks for missing models; a workflow without named parts needs nothing
    const isNew = !placementModule;
    if (isNew && !hasParts(app.rootGraph ?? app.graph)) return;
    const module = await loadPlacement();
    if (isNew) return;
    await module?.opened(app);
  },
  refreshComboInNodes: () => loaded.get("canvas_placement")?.updateLists(app),
  nodeCreated(node) {
    node.badges.push(() => placementBadge(node), () => refusalBadge(node));
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
