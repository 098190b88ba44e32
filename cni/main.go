// Braid's CNI plugin: gives a pod an interface on the node's bridge, its
// addresses and its routes, in one process and without asking the API server,
// so that pods start while the control plane is down.
//
// It speaks the CNI specification 0.3.1 to 1.1.0 (ADD, DEL, CHECK, GC, STATUS, VERSION):
// parameters in CNI_* variables, configuration on standard input, result or
// error as JSON on standard output, log on standard error.
package main

import (
	"encoding/json"
	"io"
	"log"
	"os"
	"runtime/debug"

	"github.com/containernetworking/cni/pkg/skel"
)

// supported lists the specification versions whose every requirement is met.
var supported = versions{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}

func main() {
	// The process lives for milliseconds and its memory goes with it; the
	// limit is for a folder with very many reservations.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(64 << 20)

	err := skel.PluginMainFuncsWithError(skel.CNIFuncs{Add: add, Del: del, Check: check, GC: gc, Status: status}, supported, "CNI plugin braid")
	if err == nil {
		return
	}
	if perr := err.Print(); perr != nil {
		log.Printf("write the error to standard output: %v: %v", perr, err)
	}
	os.Exit(1)
}

// versions answers VERSION. The library's own answer names the newest version
// the library knows, which need not be one we support.
type versions []string

func (v versions) SupportedVersions() []string { return v }

func (v versions) Encode(w io.Writer) error {
	return json.NewEncoder(w).Encode(struct {
		CNIVersion        string   `json:"cniVersion"`
		SupportedVersions []string `json:"supportedVersions"`
	}{v[len(v)-1], v})
}
