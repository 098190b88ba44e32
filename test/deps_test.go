// Package test holds what concerns the repository as a whole: import rules, house rules, the README,
// and (below it) the scenarios on a real kernel.
package test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/braidnet/braid/"

// importRule bans imports for the packages under a folder. Bans are prefixes of import paths and
// hold for direct imports; with deep, for everything that is linked in. Test files are exempt.
type importRule struct {
	under  string
	except string // sub-folder the rule does not hold for
	ban    []string
	allow  []string // longer prefixes that a ban does not touch
	deep   bool
	why    string
}

var ours = []string{module}

var importRules = []importRule{
	{under: "internal/model", ban: append([]string{"k8s.io/", "github.com/", "golang.org/"}, ours...), allow: []string{"k8s.io/apimachinery/pkg/labels", "k8s.io/apimachinery/pkg/types"},
		why: "the model is what every package speaks: it must cost nothing to import and know no source"},
	{under: "internal/desired", ban: append([]string{"k8s.io/", "github.com/vishvananda", "golang.org/x/sys"}, ours...), allow: []string{module + "internal/desired"},
		why: "desired kernel state is plain values: planners write them without a kernel, tests read them without root"},
	{under: "internal/source", ban: ours, allow: []string{module + "internal/model", module + "internal/source"},
		why: "sources only fill the store: the same ones serve the DNS pod, which has no privileges"},
	{under: "internal/names", ban: append([]string{"k8s.io/client-go", "github.com/coredns"}, ours...), allow: []string{module + "internal/model"},
		why: "the name index is shared by plugins and must not depend on one of them or on a source"},
	{under: "internal/kernel", ban: append([]string{"k8s.io/"}, ours...), allow: []string{module + "internal/kernel", module + "internal/desired"},
		why: "the kernel border knows nothing of clusters: it can be tested and trusted alone"},
	{under: "internal/reconcile", ban: append([]string{"k8s.io/"}, ours...),
		why: "the loop runs any step: it must not know what the step does"},
	{under: "netagent/overlay", ban: append([]string{"os", "os/exec", "time", "k8s.io/client-go", "github.com/vishvananda", "github.com/google/nftables", "golang.org/x/sys"}, ours...),
		allow: []string{module + "internal/model", module + "internal/desired", module + "netagent/overlay"},
		why:   "plans are pure: same nodes in, same routes out, whatever the clock or the kernel says"},
	{under: "netagent/service", ban: append([]string{"os", "os/exec", "k8s.io/client-go", "github.com/vishvananda", "github.com/google/nftables", "golang.org/x/sys"}, ours...),
		allow: []string{module + "internal/model", module + "internal/desired", module + "netagent/service", "github.com/google/nftables/expr", "github.com/google/nftables/binaryutil"},
		why:   "service semantics and renderers are pure: two renderers can be compared as values"},
	{under: "netagent/egress", ban: append([]string{"os", "os/exec", "time", "k8s.io/", "github.com/vishvananda", "github.com/google/nftables", "golang.org/x/sys"}, ours...),
		allow: []string{module + "internal/model", module + "internal/desired", "github.com/google/nftables/expr"},
		why:   "which address the world sees follows from settings and nodes alone, whatever writes it to the kernel"},
	{under: "netagent/policy", except: "netagent/policy/worlds/probe", ban: append([]string{"os", "os/exec", "time", "k8s.io/client-go", "github.com/vishvananda", "github.com/google/nftables", "golang.org/x/sys"}, ours...),
		allow: []string{module + "internal/model", module + "internal/desired", module + "netagent/policy", "github.com/google/nftables/expr", "github.com/google/nftables/binaryutil"},
		why:   "who may reach whom follows from the cluster alone: the same value answers people, tests and every packet filter"},
	{under: "plugin", ban: append([]string{"os/exec"}, ours...), allow: []string{module + "internal/model", module + "internal/source", module + "internal/names", module + "plugin"},
		why: "the DNS pod needs no privileges, so its code must not be able to touch the kernel"},
	{under: "plugin", ban: []string{module + "netagent", module + "internal/kernel", "github.com/coredns/coredns/plugin/kubernetes", "github.com/coredns/coredns/plugin/k8s_external"}, deep: true,
		why: "the in-tree kubernetes plugin registers the same word and would panic at start; netagent and kernel code need privileges"},
	{under: "coredns-build", ban: []string{module + "netagent", module + "internal/kernel", "github.com/coredns/coredns/plugin/kubernetes", "github.com/coredns/coredns/plugin/k8s_external"}, deep: true,
		why: "the in-tree kubernetes plugin registers the same word and would panic at start; netagent and kernel code need privileges"},
	{under: "cni", ban: []string{"k8s.io/", "github.com/prometheus", module + "netagent", module + "internal/source", module + "internal/model", "net/http"}, deep: true,
		why: "the CNI plugin starts once per pod: it must be small and work while the API server is down"},
}

type goPackage struct {
	ImportPath, Dir string
	Imports, Deps   []string
}

func TestImportRules(t *testing.T) {
	packages := goList(t)
	for _, r := range importRules {
		found := false
		for _, p := range packages {
			if !within(p.ImportPath, r.under) || (r.except != "" && within(p.ImportPath, r.except)) {
				continue
			}
			found = true
			list := p.Imports
			if r.deep {
				list = p.Deps
			}
			for _, imp := range list {
				if banned(imp, r) {
					t.Errorf("%s imports %s: banned because %s", strings.TrimPrefix(p.ImportPath, module), imp, r.why)
				}
			}
		}
		if !found {
			t.Errorf("no package under %s: the rule guards nothing", r.under)
		}
	}
}

// The product must not link what only tests may use: the peers' code.
func TestProductDoesNotLinkPeers(t *testing.T) {
	for _, p := range goList(t) {
		for _, d := range p.Deps {
			for _, peer := range []string{"k8s.io/kubernetes/", "github.com/flannel-io/", "github.com/containernetworking/plugins/plugins", "github.com/cloudnativelabs/"} {
				if strings.HasPrefix(d, peer) {
					t.Errorf("%s links %s: peers belong into a test module of their own", p.ImportPath, d)
				}
			}
		}
	}
}

func banned(imp string, r importRule) bool {
	longest := func(prefixes []string) int {
		n := -1
		for _, p := range prefixes {
			if (imp == strings.TrimSuffix(p, "/") || strings.HasPrefix(imp, strings.TrimSuffix(p, "/")+"/")) && len(p) > n {
				n = len(p)
			}
		}
		return n
	}
	return longest(r.ban) > longest(r.allow)
}

func within(path, folder string) bool {
	rel := strings.TrimPrefix(path, module)
	return rel == folder || strings.HasPrefix(rel, folder+"/")
}

func goList(t *testing.T) (out []goPackage) {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Imports,Deps", "./...")
	cmd.Dir = ".."
	data, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for d := json.NewDecoder(strings.NewReader(string(data))); ; {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return out
		} else if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(p.ImportPath, "/nstest") { // test helpers may use anything
			out = append(out, p)
		}
	}
}

func TestBannedTakesTheLongestPrefix(t *testing.T) {
	r := importRule{ban: []string{"k8s.io/", "os", module}, allow: []string{"k8s.io/apimachinery/pkg/labels", module + "internal/model"}}
	for imp, want := range map[string]bool{
		"k8s.io/api/core/v1": true, "k8s.io/apimachinery/pkg/labels": false, "k8s.io/apimachinery/pkg/runtime": true,
		"os": true, "os/exec": true, "ostrich": false, module + "internal/model": false, module + "netagent": true,
	} {
		if got := banned(imp, r); got != want {
			t.Errorf("banned(%s) = %v, want %v", imp, got, want)
		}
	}
}
