package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/braidnet/braid/netagent/agent"
)

func TestLoadConfig(t *testing.T) {
	for _, tc := range []struct{ name, yaml, args, wantErr, wantNode, wantOverlay string }{
		{"value out of range", "node: n7\noverlay: vxlam\n", "", `c.yaml:2: overlay: unknown backend "vxlam"`, "", ""},
		{"fault on the command line", "node: n7\noverlay: vxlan\n", "--vni=0", `vni: 0 is out of range`, "", ""},
		{"second document", "node: n7\n---\noverlay: host-gw\n", "", "c.yaml:2: a second document", "", ""},
		{"broken second document", "node: n7\n---\n\tx\n", "", "c.yaml:3: ", "", ""},
		{"end mark", "node: n7\n...\n", "", "", "n7", "vxlan"},
		{"sets what it names", "node: n7\noverlay: host-gw\n", "", "", "n7", "host-gw"},
		{"the command line wins", "node: n7\n", "--node=n8", "", "n8", "vxlan"},
		{"empty file", "# nothing\n", "", "", "", "vxlan"},
		{"unknown key with line and suggestion", "node: n7\n\noverlai: host-gw\n", "", `c.yaml:3: unknown key "overlai" (did you mean "overlay"?); accepted: `, "", ""},
		{"wrong type", "vni: many\n", "", `c.yaml:1: vni: "many" is not a valid int`, "", ""},
		{"a name of kube-proxy", "hostname-override: n7\nproxy-mode: iptables\n", "", "", "n7", "vxlan"},
		{"the same by two names", "node: n7\nhostname-override: n8\n", "", `c.yaml:2: key "node" stands in line 1 already`, "", ""},
		{"a setting that only kube-proxy has", "node: n7\niptables-min-sync-period: 1s\n", "", `c.yaml:2: key "iptables-min-sync-period": a setting of kube-proxy that does not exist here: changes are written as they come`, "", ""},
		{"a file of kube-proxy", "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n", "", "c.yaml:2: this is a KubeProxyConfiguration", "", ""},
		{"twice", "node: a\nnode: b\n", "", `c.yaml:2: key "node" stands in line 1 already`, "", ""},
		{"bad regular expression", "node: n7\niface-regex: eth(\n", "", `c.yaml:2: iface-regex: "eth(" is no regular expression`, "", ""},
		{"list in a list", "iface: [[a]]\n", "", "c.yaml:1: iface: expected one value", "", ""},
		{"empty item", "iface: [eth0, ]\niface-regex: [a, null]\n", "", "c.yaml:2: iface-regex: an empty item", "", ""},
		{"list", "node: [a]\n", "", "c.yaml:1: node: expected one value", "", ""},
		{"not a mapping", "- node\n", "", "c.yaml:1: expected `name: value` pairs", "", ""},
		{"broken yaml", "node: n1\n\toverlay: x\n", "", "c.yaml:2: ", "", ""},
		{"every problem is reported", "a: 1\nb: 2\n", "", "c.yaml:2: unknown key", "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "c.yaml")
			if err := os.WriteFile(file, []byte(tc.yaml), 0o600); err != nil {
				t.Fatal(err)
			}
			cfg := agent.DefaultConfig()
			cfg.Node = ""
			flags := pflag.NewFlagSet("run", pflag.ContinueOnError)
			runFlags(flags, &cfg)
			acceptKubeProxyNames(flags)
			if err := flags.Parse(strings.Fields(tc.args)); err != nil {
				t.Fatal(err)
			}
			err := loadConfig(file, flags, func() error {
				if cfg.Node == "" {
					return nil // most of the files here are about other settings
				}
				return cfg.Validate()
			})
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Fatalf("error %v, want one with %q", err, tc.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if cfg.Node != tc.wantNode || cfg.Overlay != tc.wantOverlay {
				t.Errorf("node %q overlay %q, want %q %q", cfg.Node, cfg.Overlay, tc.wantNode, tc.wantOverlay)
			}
		})
	}
}

// Settings that flannel's users give several times are lists in a file, or one value.
func TestListsOfInterfaces(t *testing.T) {
	for _, tc := range []struct{ yaml, args, want string }{
		{"iface: [eth1, 192.0.2.1]\niface-regex: ['^bond{1,2}', wg]\n", "", "[eth1 192.0.2.1] [^bond{1,2} wg]"},
		{"iface: eth1\niface-regex: ^bond{1,2}\n", "", "[eth1] [^bond{1,2}]"},
		{"iface: eth1,eth2\n", "", "[eth1 eth2] []"},
		{"iface: eth1\n", "--iface=eth2 --iface=eth3 --iface-regex=a{1,2} --iface-regex=b", "[eth2 eth3] [a{1,2} b]"},
	} {
		file := filepath.Join(t.TempDir(), "c.yaml")
		if err := os.WriteFile(file, []byte(tc.yaml), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg := agent.DefaultConfig()
		cfg.Node = "n1"
		flags := pflag.NewFlagSet("run", pflag.ContinueOnError)
		runFlags(flags, &cfg)
		if err := flags.Parse(strings.Fields(tc.args)); err != nil {
			t.Fatal(err)
		}
		err := loadConfig(file, flags, cfg.Validate)
		if got := fmt.Sprint(cfg.Interface.Iface, cfg.Interface.IfaceRegex); err != nil || got != tc.want {
			t.Errorf("%q %s: %s, %v, want %s", tc.yaml, tc.args, got, err, tc.want)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, tc := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"vxlam", "vxlan", 1}, {"node", "mode", 1}, {"kitten", "sitting", 3}} {
		if got := distance(tc.a, tc.b); got != tc.want {
			t.Errorf("distance(%q, %q) = %d, want %d", tc.a, tc.b, got, tc.want)
		}
	}
}

// TestFlagsOfKubeProxy: each flag that users of kube-proxy set is taken by its name, or refused with what to do.
func TestFlagsOfKubeProxy(t *testing.T) {
	for _, flag := range []string{"kubeconfig", "proxy-mode", "cluster-cidr", "detect-local-mode", "pod-bridge-interface",
		"pod-interface-name-prefix", "masquerade-all", "iptables-localhost-nodeports", "nodeport-addresses", "healthz-bind-address", "metrics-bind-address",
		"hostname-override", "conntrack-max-per-core", "conntrack-min", "conntrack-tcp-timeout-established", "conntrack-tcp-timeout-close-wait",
		"conntrack-tcp-be-liberal", "conntrack-udp-timeout", "conntrack-udp-timeout-stream"} {
		if newRun().Flags().Lookup(flag) == nil {
			t.Errorf("--%s is not accepted", flag)
		}
	}
	for _, flag := range []string{"iptables-masquerade-bit", "iptables-sync-period", "iptables-min-sync-period", "ipvs-scheduler", "ipvs-strict-arp",
		"ipvs-exclude-cidrs", "ipvs-sync-period", "bind-address", "cleanup", "init-only", "profiling", "oom-score-adj", "kube-api-qps", "kube-api-burst",
		"feature-gates", "v", "config-sync-period"} {
		root := newRoot()
		root.SetArgs([]string{"run", "--" + flag + "=1"})
		if err := root.Execute(); err == nil || !strings.Contains(err.Error(), "a setting of kube-proxy that does not exist here: ") {
			t.Errorf("--%s: %v", flag, err)
		}
	}
	root := newRoot()
	root.SetArgs([]string{"run", "-v=4"})
	if err := root.Execute(); err == nil || !strings.Contains(err.Error(), "use log-level") {
		t.Errorf("-v=4: %v", err)
	}
}

// TestMasqueradeFlags: flannel's are switches, in a file they are words.
func TestMasqueradeFlags(t *testing.T) {
	for _, args := range [][]string{{"--ip-masq", "--ip-masq-fully-random-disable"}, {"--ip-masq=true", "--ip-masq-fully-random-disable=true"}} {
		cfg := agent.DefaultConfig()
		f := pflag.NewFlagSet("run", pflag.ContinueOnError)
		runFlags(f, &cfg)
		if err := f.Parse(args); err != nil || cfg.IPMasq != "true" || !cfg.IPMasqSamePorts {
			t.Errorf("%v: %v, ip-masq %q, ports kept %v", args, err, cfg.IPMasq, cfg.IPMasqSamePorts)
		}
	}
	cfg := agent.DefaultConfig()
	f := pflag.NewFlagSet("run", pflag.ContinueOnError)
	runFlags(f, &cfg)
	file := filepath.Join(t.TempDir(), "netagent.yaml")
	if err := os.WriteFile(file, []byte("node: n1\nip-masq: false\nnon-masquerade-cidrs: 10.0.0.0/8\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := loadConfig(file, f, cfg.Validate); err == nil || !strings.Contains(err.Error(), "netagent.yaml:3: non-masquerade-cidrs: nothing is masqueraded with ip-masq false here") {
		t.Errorf("a range that counts for nothing: %v", err)
	}
}
