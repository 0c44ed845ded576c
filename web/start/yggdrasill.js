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
const serveItem = () => ({ content: "Serve this workflow", callback: serve });

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
  ],
  menuCommands: [{ path: ["Yggdrasill"], commands: [SERVE, ADD_ENDPOINT] }],
  getCanvasMenuItems: () => [null, serveItem()],
  getNodeMenuItems: (node) => (BEHAVIOUR[node.comfyClass] === "port_nodes" ? [null, serveItem()] : []),
  beforeRegisterNodeDef(_nodeType, definition) {
    if (definition.name === REMOTE_GRAPH || definition.name === RUN_GRAPH) shapeDefinition(definition);
  },
  async beforeConfigureGraph(workflow) {
    await Promise.all(modulesFor(workflow).map(load));
  },
  nodeCreated(node) {
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
