package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/braidnet/braid/netagent/agent/enforce"
)

// attachWait is how long the CNI plugin waits for the policies of a new pod. The API server told the kubelet
// of the pod, and tells us at about the same time.
const attachWait = 5 * time.Second

// answerAttachment answers 200 when the policies of the pod are in the kernel, 503 when they are not yet.
func (a *Agent) answerAttachment(w http.ResponseWriter, r *http.Request) {
	if a.policies == nil {
		w.WriteHeader(http.StatusOK) // nothing isolates pods
		return
	}
	var x enforce.Attachment
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16)).Decode(&x); err != nil || !x.Whole() {
		http.Error(w, fmt.Sprintf("an attachment has namespace, name, link and addresses: %v", err), http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), attachWait)
	defer cancel()
	if err := a.policies.Attach(ctx, x, a.byName["policy"].Kick); err != nil {
		a.log.Warn("a new pod waits for its policies", "pod", x.Namespace+"/"+x.Name, "link", x.Link, "err", err)
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	}
}
