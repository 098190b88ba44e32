package agent

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/agent/enforce"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/version"
)

// TestConflistIsTaken reads the configuration with the library of runtimes.
func TestConflistIsTaken(t *testing.T) {
	a := &Agent{cfg: Config{RunDir: "/run/braid", StateDir: "/var/lib/braid"}}
	node := &model.Node{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64")}}
	data, err := json.Marshal(a.conflist(node))
	if err != nil {
		t.Fatal(err)
	}
	list, err := libcni.NetworkConfFromBytes(data)
	if err != nil {
		t.Fatal(err)
	}
	if list.CNIVersion != version.Current() || list.Name != "braid" || len(list.Plugins) != 1 || list.DisableGC {
		t.Errorf("a new runtime reads %+v", list)
	}
	if p := list.Plugins[0].Network; p.Type != "braid" || !p.Capabilities["portMappings"] {
		t.Errorf("plugin %+v", p)
	}
	a.cfg.PolicyFirst, a.policies = true, &enforce.Enforcer{}
	data, err = json.Marshal(a.conflist(node))
	var conf struct{ Plugins []cniPlugin }
	if err != nil || json.Unmarshal(data, &conf) != nil || conf.Plugins[0].PolicySocket != "/run/braid/netagent.sock" || !conf.Plugins[0].PolicyFirst {
		t.Errorf("with policies enforced: %s, %v", data, err)
	}
	var old struct{ CNIVersion string }
	if err := json.Unmarshal(data, &old); err != nil || old.CNIVersion != "1.0.0" {
		t.Errorf("an old runtime, which knows cniVersion only, reads %+v, %v", old, err)
	}
}
