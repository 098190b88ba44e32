package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// runtimeOf is the library container runtimes call plugins with.
func (h *host) runtimeOf(t *testing.T, version string) (*libcni.CNIConfig, *libcni.NetworkConfigList) {
	t.Helper()
	data, err := json.Marshal(map[string]any{"cniVersion": version, "name": "braid", "plugins": []any{h.conf}})
	if err != nil {
		t.Fatal(err)
	}
	list, err := libcni.ConfListFromBytes(data)
	if err != nil {
		t.Fatal(err)
	}
	return libcni.NewCNIConfigWithCacheDir([]string{filepath.Dir(binary)}, t.TempDir(), nil), list
}

func TestThroughALibraryOfRuntimes(t *testing.T) {
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			h := newHost(t)
			p := newPod(t, "pod")
			cni, list := h.runtimeOf(t, version)
			rt := &libcni.RuntimeConf{ContainerID: p.id, NetNS: p.netns, IfName: p.ifname,
				Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", "pod"}, {"K8S_POD_TENANT", "x"}}}
			ctx := context.Background()
			h.Run(t, func() error {
				r, err := cni.AddNetworkList(ctx, list, rt)
				if err != nil {
					return err
				}
				if r.Version() != version {
					t.Errorf("result of version %s, want %s", r.Version(), version)
				}
				result, err := types100.GetResult(r)
				routes := slices.DeleteFunc(result.Routes, func(r *types.Route) bool { return r.GW == nil })
				if err == nil && (len(result.IPs) != 2 || len(routes) != 2 || routes[0].GW.String() != "10.244.1.1") {
					t.Errorf("result %v", result)
				}
				if n := len(result.Routes) - len(routes); (n == 2) != (version == "1.1.0") || (result.Interfaces[2].Mtu == 1450) != (version == "1.1.0") {
					t.Errorf("%d routes on the link, interfaces %v", n, result.Interfaces)
				}
				return err
			})
			p.ping(t, "fd00:10:244:1::1")
			h.Run(t, func() error {
				if err := cni.CheckNetworkList(ctx, list, rt); err != nil && version != "0.3.1" {
					return err
				}
				if err := cni.DelNetworkList(ctx, list, rt); err != nil {
					return err
				}
				if err := cni.DelNetworkList(ctx, list, rt); err != nil {
					return err
				}
				if err := cni.GetStatusNetworkList(ctx, list); err != nil {
					return err
				}
				return cni.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: "x", IfName: "eth0"}}})
			})
			h.clean("after DelNetworkList")
		})
	}
}

func TestChainedAfterAnotherPlugin(t *testing.T) {
	h := newHost(t)
	p := newPod(t, "pod")
	prev := `{"cniVersion": "1.0.0", "interfaces": [{"name": "net1", "sandbox": "` + p.netns + `"}],
		"ips": [{"interface": 0, "address": "192.0.2.7/24"}], "dns": {"nameservers": ["192.0.2.53"]}}`
	out, failure := h.call("ADD", p.attach, h.with(map[string]any{"prevResult": json.RawMessage(prev)}))
	if failure != nil {
		t.Fatal(failure)
	}
	r := h.result(out)
	if len(r.Interfaces) != 4 || r.Interfaces[0].Name != "net1" || r.Interfaces[3].Name != "eth0" {
		t.Errorf("interfaces %v", r.Interfaces)
	}
	if len(r.IPs) != 3 || *r.IPs[0].Interface != 0 || *r.IPs[1].Interface != 3 || r.DNS.Nameservers[0] != "192.0.2.53" {
		t.Errorf("addresses %v, dns %v", r.IPs, r.DNS)
	}
	if failure := h.check(p.attach, r); failure != nil {
		t.Errorf("CHECK of the merged result: %v", failure)
	}
}

func TestUnknownVersionIsRefused(t *testing.T) {
	h := newHost(t)
	p := newPod(t, "pod")
	for _, version := range []string{"0.2.0", "1.2.0", "9.9.9"} {
		_, failure := h.call("ADD", p.attach, h.with(map[string]any{"cniVersion": version}))
		if failure == nil || failure.Code != 1 || !strings.Contains(failure.Msg, "incompatible CNI versions") {
			t.Errorf("version %s: %v", version, failure)
		}
	}
	h.clean("after refused ADDs")
}

// TestChainedBeforeAnotherPlugin: who comes next gets our result, in the version that was asked for, in both modes.
func TestChainedBeforeAnotherPlugin(t *testing.T) {
	inBothModes(t, func(t *testing.T) {
		for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
			h := newHost(t)
			p := newPod(t, "pod")
			dir := t.TempDir()
			got := filepath.Join(dir, "got")
			script := "#!/bin/sh\ncat >" + got + "\n[ $CNI_COMMAND != ADD ] || echo '{\"cniVersion\": \"" + version + "\"}'\n"
			if err := os.WriteFile(filepath.Join(dir, "next"), []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
			data, err := json.Marshal(map[string]any{"cniVersion": version, "name": "braid", "plugins": []any{h.conf, map[string]string{"type": "next"}}})
			if err != nil {
				t.Fatal(err)
			}
			list, err := libcni.ConfListFromBytes(data)
			if err != nil {
				t.Fatal(err)
			}
			cni := libcni.NewCNIConfigWithCacheDir([]string{filepath.Dir(binary), dir}, t.TempDir(), nil)
			rt := &libcni.RuntimeConf{ContainerID: p.id, NetNS: p.netns, IfName: p.ifname}
			h.Run(t, func() error { _, err := cni.AddNetworkList(context.Background(), list, rt); return err })
			var next struct {
				Prev map[string]any `json:"prevResult"`
			}
			text, err := os.ReadFile(got)
			if err == nil {
				err = json.Unmarshal(text, &next)
			}
			if err != nil {
				t.Fatal(err)
			}
			// IPs say their family up to 0.4.0 (specification, "Result").
			ips, _ := next.Prev["ips"].([]any)
			if next.Prev["cniVersion"] != version || len(ips) != 2 {
				t.Fatalf("%s: prevResult %v", version, next.Prev)
			}
			family, old := ips[1].(map[string]any)["version"]
			if old != strings.HasPrefix(version, "0.") || old && family != "6" {
				t.Errorf("%s: %v", version, ips)
			}
			h.Run(t, func() error { return cni.DelNetworkList(context.Background(), list, rt) })
			h.clean("after DelNetworkList")
		}
	})
}

// BenchmarkStatus is what a runtime waits for every few seconds: a process, and its answer.
func BenchmarkStatus(b *testing.B) {
	h := newHost(b)
	h.add(newPod(b, "pod").attach)
	conf := h.with(nil)
	for b.Loop() {
		if _, failure := h.call("STATUS", attach{}, conf); failure != nil {
			b.Fatal(failure)
		}
	}
}
