package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"time"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/policy"
)

// attachWait is how long the CNI plugin waits for the policies of a new pod. The API server told the kubelet
// of the pod, and tells us at about the same time.
const attachWait = 5 * time.Second

// attachment is what the CNI plugin says about an interface it made.
type attachment struct {
	Namespace string       `json:"namespace"`
	Name      string       `json:"name"`
	UID       string       `json:"uid"`
	Link      string       `json:"link"`
	Addrs     []netip.Addr `json:"addresses"`
}

// answerAttachment answers 200 when the policies of the pod are in the kernel, 503 when they are not yet.
func (a *Agent) answerAttachment(w http.ResponseWriter, r *http.Request) {
	if a.policies == nil {
		w.WriteHeader(http.StatusOK) // nothing isolates pods
		return
	}
	var x attachment
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16)).Decode(&x); err != nil || x.Name == "" || x.Link == "" || len(x.Addrs) == 0 {
		http.Error(w, fmt.Sprintf("an attachment has namespace, name, link and addresses: %v", err), http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), attachWait)
	defer cancel()
	of := policy.Attachment{Pod: model.Key{Namespace: x.Namespace, Name: x.Name}, UID: x.UID, Link: x.Link, Addrs: x.Addrs}
	if err := a.policies.attach(ctx, of, a.byName["policy"].Kick); err != nil {
		a.log.Warn("a new pod waits for its policies", "pod", of.Pod, "link", of.Link, "err", err)
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	}
}
