/**
 * The editor extension: what it registers with ComfyUI. What each thing does stands in the two modules beside this one.
 *
 * ComfyUI loads every .js file of this folder; only this one has an effect when it is loaded. Nothing is asked of the server
 * before a Remote Graph node is there or a command is given.
 */
import { REMOTE_GRAPH, attachRemoteGraph, checkRemoteGraph, shapeDefinition } from "./remote_graph.js";
import { PORT_NODES, addEndpoint, attachPort, serveWorkflow } from "./serving.js";

const { app } = window.comfyAPI.app;

const SERVE = "Yggdrasill.ServeWorkflow";
const ADD_ENDPOINT = "Yggdrasill.AddEndpoint";

/** @returns {object} the line of a context menu that serves the open workflow */
function serveItem() {
  return { content: "Serve this workflow", callback: () => serveWorkflow(app) };
}

app.registerExtension({
  name: "Yggdrasill",
  commands: [
    { id: SERVE, label: "Serve this workflow", icon: "pi pi-share-alt", function: () => serveWorkflow(app) },
    { id: ADD_ENDPOINT, label: "Add an endpoint", icon: "pi pi-plus", function: () => addEndpoint(app) },
  ],
  menuCommands: [{ path: ["Yggdrasill"], commands: [SERVE, ADD_ENDPOINT] }],
  getCanvasMenuItems: () => [null, serveItem()],
  getNodeMenuItems: (node) => (PORT_NODES.has(node.comfyClass) ? [null, serveItem()] : []),
  beforeRegisterNodeDef(_nodeType, definition) {
    if (definition.name === REMOTE_GRAPH) shapeDefinition(definition);
  },
  nodeCreated(node) {
    if (node.comfyClass === REMOTE_GRAPH) attachRemoteGraph(node, app);
    else if (PORT_NODES.has(node.comfyClass)) attachPort(node, app);
  },
  loadedGraphNode(node) {
    if (node.comfyClass === REMOTE_GRAPH) checkRemoteGraph(node);
  },
});
