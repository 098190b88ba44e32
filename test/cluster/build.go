package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// What a cluster is made of. The modules in build/ pin the same versions; build_test.go compares.
const (
	kubernetesVersion = "v1.36.3"
	etcdVersion       = "v3.6.8"
	containerdVersion = "v2.3.7"
	ginkgoVersion     = "v2.28.1"
	// Parts that stand beside Braid's. Their programs' names in the cache folder end in the version.
	coreDNSVersion = "v1.15.0"
	pluginsVersion = "v1.9.1"
	// What `make bench-policy` measures beside ours.
	networkPoliciesVersion = "v1.1.1"
	kubeRouterVersion      = "v2.1.0"
)

func versionKey() string {
	return "kubernetes-" + kubernetesVersion + "_etcd-" + etcdVersion + "_containerd-" + containerdVersion
}

// program is one binary and how it is built.
type program struct {
	name, module, pkg string
	tags, ldflags     string
	test              bool          // a test binary
	cold              time.Duration // about how long two processors take from nothing; 0 = some seconds
}

const (
	kubeVersionVar = "-X k8s.io/component-base/version."
	// Clients that find no version in a server take it for one that can do nothing.
	kubeLD = "-s -w " + kubeVersionVar + "gitVersion=" + kubernetesVersion + " " + kubeVersionVar + "gitMajor=1 " + kubeVersionVar + "gitMinor=36"
	ctrPkg = "github.com/containerd/containerd/v2/"
	ctrLD  = "-s -w -X " + ctrPkg + "version.Version=" + containerdVersion
	// These snapshotters want C libraries; nodes use overlayfs.
	ctrTags = "no_btrfs no_zfs no_devmapper no_aufs"
)

// usualCold is how long most programs take, those of Kubernetes' after its first.
const usualCold = 40 * time.Second

// programs are in the order in which a cluster needs them.
func programs() []program {
	out := []program{
		{name: "kube-apiserver", module: "kubernetes", pkg: "k8s.io/kubernetes/cmd/kube-apiserver", ldflags: kubeLD, cold: 6 * time.Minute},
		{name: "etcd", module: "etcd", pkg: "go.etcd.io/etcd/server/v3", ldflags: "-s -w", cold: usualCold},
	}
	for _, name := range []string{"kube-controller-manager", "kube-scheduler", "kubelet", "kubectl"} {
		out = append(out, program{name: name, module: "kubernetes", pkg: "k8s.io/kubernetes/cmd/" + name, ldflags: kubeLD, cold: usualCold})
	}
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr"} {
		out = append(out, program{name: name, module: "containerd", pkg: ctrPkg + "cmd/" + name, tags: ctrTags, ldflags: ctrLD, cold: usualCold})
	}
	for _, name := range []string{"agnhost", "regression-issue-74839"} {
		out = append(out, program{name: name, module: "kubernetes", pkg: "k8s.io/kubernetes/test/images/" + name, ldflags: kubeLD})
	}
	return append(out, stockDNS, program{name: "pause", pkg: "./pause", ldflags: "-s -w"})
}

// balancer is the load balancer of `up --load-balancer`. It is our own, so its name in the cache follows its
// sources.
func (o *options) balancer() (program, error) {
	sources, err := filepath.Glob(filepath.Join(o.Root, "test/cluster/build/kubernetes/balancer/*.go"))
	if err != nil {
		return program{}, err
	}
	sum := sha256.New()
	for _, file := range sources {
		data, err := os.ReadFile(file)
		if err != nil {
			return program{}, err
		}
		sum.Write(data)
	}
	return program{name: "balancer-" + hex.EncodeToString(sum.Sum(nil)[:4]), module: "kubernetes", pkg: "./balancer", ldflags: "-s -w"}, nil
}

// suite is upstream's end-to-end suite, and what runs it in several processes; only `e2e` needs them.
var suite = []program{
	{name: "e2e.test", module: "kubernetes", pkg: "k8s.io/kubernetes/test/e2e", ldflags: kubeLD, test: true, cold: 2 * time.Minute},
	{name: "ginkgo", module: "kubernetes", pkg: "github.com/onsi/ginkgo/v2/ginkgo", ldflags: "-s -w"},
}

// build makes the programs that the cache lacks. They appear under their name only when complete.
func build(ctx context.Context, o *options, all ...program) error {
	if err := os.MkdirAll(filepath.Join(o.Cache, "bin"), 0o755); err != nil {
		return fmt.Errorf("make the cache folder: %w; choose another with --cache", err)
	}
	for _, p := range all {
		if _, err := os.Stat(o.bin(p.name)); err == nil {
			continue
		}
		start := time.Now()
		fmt.Printf("building %s\n", p.name)
		if err := buildOne(ctx, o, p); err != nil {
			return err
		}
		fmt.Printf("built %s in %s\n", p.name, time.Since(start).Round(time.Second))
	}
	return nil
}

// buildTime says about how long it takes to make what the cache lacks, and names it.
func (o *options) buildTime(all []program) (cost time.Duration, missing []string) {
	for _, p := range all {
		if _, err := os.Stat(o.bin(p.name)); err != nil {
			cost, missing = cost+p.cold, append(missing, p.name)
		}
	}
	if _, err := os.Stat(o.testArchive()); err != nil {
		cost, missing = cost+usualCold, append(missing, "the test images")
	}
	return cost, missing
}

func buildOne(ctx context.Context, o *options, p program) error {
	dir := filepath.Join(o.Root, "test/cluster")
	if p.module != "" {
		dir = filepath.Join(dir, "build", p.module)
	}
	next := o.bin(p.name) + ".new"
	verb := []string{"build"}
	if p.test {
		verb = []string{"test", "-c"}
	}
	cmd := exec.CommandContext(ctx, "go", append(verb, "-mod=readonly", "-tags", p.tags, "-ldflags", p.ldflags, "-o", next, p.pkg)...)
	cmd.Dir = dir
	// A workspace of the caller would override the versions that build/ pins.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s in %s: %w\n%s", p.name, dir, err, strings.TrimSpace(string(out)))
	}
	return os.Rename(next, o.bin(p.name))
}

func runBuild(ctx context.Context, args []string) error {
	o := &options{}
	only, err := parse(flags("build", o), o, args)
	if err != nil {
		return err
	}
	if len(only) > 0 {
		return buildOnly(ctx, o, only)
	}
	if err := build(ctx, o, programs()...); err != nil {
		return err
	}
	if err := buildImages(ctx, o); err != nil {
		return err
	}
	fmt.Println("programs and images are in", o.Cache)
	return nil
}

// buildOnly makes some programs, also those that no cluster needs, and prints where they are.
func buildOnly(ctx context.Context, o *options, names []string) error {
	all := append(append(programs(), stockPrograms()...), policyPeers...)
	for _, name := range names {
		i := slices.IndexFunc(all, func(p program) bool { return p.name == name })
		if i < 0 {
			return usageError{fmt.Errorf("there is no program %q", name)}
		}
		if err := build(ctx, o, all[i]); err != nil {
			return err
		}
		fmt.Println(o.bin(name))
	}
	return nil
}
