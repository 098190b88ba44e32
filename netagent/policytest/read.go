// Package policytest says, from manifests alone, who may reach whom: for people who write policies,
// and for pipelines that keep a promise about them. It asks the compiler that the agent enforces.
package policytest

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/source"
	"github.com/braidnet/braid/internal/source/manifest"
)

// Input is a file of manifests.
type Input struct {
	Name string
	Data []byte
}

// Read reads files, and the YAML and JSON files of folders (not of folders within). "-" is stdin.
func Read(args []string, stdin io.Reader) (out []Input, err error) {
	for _, arg := range args {
		if arg == "-" {
			data, err := io.ReadAll(stdin)
			if err != nil {
				return nil, fmt.Errorf("read standard input: %w", err)
			}
			out = append(out, Input{"stdin", data})
			continue
		}
		names := []string{arg}
		if info, err := os.Stat(arg); err == nil && info.IsDir() {
			names = nil
			for _, suffix := range []string{"yaml", "yml", "json"} {
				found, err := filepath.Glob(filepath.Join(arg, "*."+suffix))
				if err != nil {
					return nil, fmt.Errorf("read %s: %w", arg, err)
				}
				names = append(names, found...)
			}
			slices.Sort(names)
			if len(names) == 0 {
				return nil, fmt.Errorf("read %s: there is no .yaml, .yml or .json file in it", arg)
			}
		}
		for _, name := range names {
			data, err := os.ReadFile(name)
			if err != nil {
				return nil, fmt.Errorf("read manifests: %w", err)
			}
			out = append(out, Input{name, data})
		}
	}
	return out, nil
}

// known are the kinds that matter to policy: those of the model, and what makes pods.
func known(apiVersion, kind string) runtime.Object {
	switch apiVersion + " " + kind {
	case "v1 Namespace", "v1 Pod", "networking.k8s.io/v1 NetworkPolicy":
		return source.Known(apiVersion, kind)
	case "apps/v1 Deployment":
		return &appsv1.Deployment{}
	case "apps/v1 ReplicaSet":
		return &appsv1.ReplicaSet{}
	case "apps/v1 StatefulSet":
		return &appsv1.StatefulSet{}
	case "apps/v1 DaemonSet":
		return &appsv1.DaemonSet{}
	case "v1 ReplicationController":
		return &corev1.ReplicationController{}
	case "batch/v1 Job":
		return &batchv1.Job{}
	case "batch/v1 CronJob":
		return &batchv1.CronJob{}
	}
	return nil
}

// template returns the pod template of a workload, nil for other objects.
func template(o runtime.Object) *corev1.PodTemplateSpec {
	switch o := o.(type) {
	case *appsv1.Deployment:
		return &o.Spec.Template
	case *appsv1.ReplicaSet:
		return &o.Spec.Template
	case *appsv1.StatefulSet:
		return &o.Spec.Template
	case *appsv1.DaemonSet:
		return &o.Spec.Template
	case *corev1.ReplicationController:
		return o.Spec.Template
	case *batchv1.Job:
		return &o.Spec.Template
	case *batchv1.CronJob:
		return &o.Spec.JobTemplate.Spec.Template
	}
	return nil
}

// read turns manifests into the model's objects; each workload becomes one pod of its name.
func (s *Study) read(inputs []Input) error {
	var faults []error
	given := map[model.Ref]string{}
	for _, in := range inputs {
		docs, errs := manifest.Parse(in.Name, in.Data, known)
		for _, e := range errs {
			faults = append(faults, e)
		}
		for i := range docs {
			d := &docs[i]
			if d.Object == nil {
				continue
			}
			if _, ok := d.Object.(*networkingv1.NetworkPolicy); ok {
				for _, w := range d.Warnings { // a misspelled "from" would be a rule for everybody
					faults = append(faults, errors.New(strings.TrimSuffix(w.Error(), ", ignored"))) // it is not, here
				}
			}
			object, kind := d.Object, d.Kind
			if t := template(object); t != nil {
				object = podOf(object.(metav1.Object), t, kind)
			}
			value, err := source.Convert(object, model.Origin{File: in.Name, Line: d.Line})
			var fields source.Errors
			switch {
			case errors.As(err, &fields):
				for _, f := range fields {
					faults = append(faults, d.At(f.Path, f))
				}
				continue
			case err != nil:
				faults = append(faults, d.At("", err))
				continue
			}
			ref := value.From().Ref
			here := fmt.Sprintf("%s:%d", in.Name, d.Line)
			if first, twice := given[ref]; twice {
				faults = append(faults, d.At("", fmt.Errorf("there is a %s %s at %s already, expected another name", kind, ref.Key, first)))
				continue
			}
			given[ref] = here
			s.workloads[ref.Key] = s.workloads[ref.Key] || object != d.Object
			s.take(value)
		}
	}
	return errors.Join(faults...)
}

// podOf is a pod that a workload makes.
func podOf(owner metav1.Object, t *corev1.PodTemplateSpec, kind string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: *t.ObjectMeta.DeepCopy(), Spec: t.Spec}
	p.Namespace, p.Name = owner.GetNamespace(), owner.GetName()
	if kind == "StatefulSet" {
		if p.Labels == nil {
			p.Labels = map[string]string{}
		}
		p.Labels[appsv1.StatefulSetPodNameLabel] = p.Name + "-0"
	}
	return p
}

func (s *Study) take(o model.Object) {
	switch o := o.(type) {
	case *model.Namespace:
		s.namespaces[o.Name] = o
	case *model.NetworkPolicy:
		s.policies = append(s.policies, o)
	case *model.Pod:
		switch {
		case o.HostNetwork:
			s.Notes = append(s.Notes, fmt.Sprintf("%s is on the host's network: to policies it is an address of its node, so it is not listed", o.Key))
		case o.Finished():
			s.Notes = append(s.Notes, fmt.Sprintf("%s has ended, so it is not listed", o.Key))
		default:
			s.pods = append(s.pods, o)
		}
	}
}

// complete gives namespaces to what names one, and addresses to pods.
func (s *Study) complete(ranges []netip.Prefix) error {
	missing := map[string]bool{}
	need := func(o model.Origin) {
		if s.namespaces[o.Namespace] == nil {
			missing[o.Namespace] = true
			value, _ := source.Convert(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: o.Namespace}}, model.Origin{})
			s.namespaces[o.Namespace] = value.(*model.Namespace)
		}
	}
	for _, p := range s.policies {
		need(p.Origin)
	}
	taken := map[netip.Addr]model.Key{}
	for _, p := range s.pods {
		need(p.Origin)
		for _, a := range p.IPs {
			if other, twice := taken[a]; twice {
				return fmt.Errorf("pods %s and %s both have the address %s", other, p.Key, a)
			}
			taken[a] = p.Key
		}
	}
	for name := range missing {
		s.Notes = append(s.Notes, fmt.Sprintf("namespace %s is not among the manifests: taken to have no labels but its name", name))
	}
	slices.Sort(s.Notes)
	slices.SortFunc(s.pods, func(a, b *model.Pod) int { return strings.Compare(a.Key.String(), b.Key.String()) })
	next := make([]netip.Addr, len(ranges))
	for i, r := range ranges {
		next[i] = r.Masked().Addr()
	}
	for i, p := range s.pods {
		if len(p.IPs) > 0 {
			continue
		}
		with := *p
		for j, r := range ranges {
			for next[j] = next[j].Next(); taken[next[j]].Name != ""; next[j] = next[j].Next() {
			}
			if !r.Contains(next[j]) {
				return fmt.Errorf("pod-cidr: %s has too few addresses for %d pods", r, len(s.pods))
			}
			taken[next[j]] = p.Key
			with.IPs = append(with.IPs, next[j])
		}
		s.pods[i] = &with
	}
	return nil
}
