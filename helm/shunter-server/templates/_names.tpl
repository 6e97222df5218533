{{/* What things are called, and the labels by which they are found. */}}

{{- define "shunter-server.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Of all objects: 52 letters at the most, so that endings like -bootstrap fit behind it. */}}
{{- define "shunter-server.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The Secret with the admin's token and the keys that secrets are encrypted with. */}}
{{- define "shunter-server.keys" -}}
{{- default (include "shunter-server.fullname" .) .Values.auth.existingSecret -}}
{{- end -}}

{{- define "shunter-server.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "shunter-server.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Hooks run before the server's own account is there. */}}
{{- define "shunter-server.migrationAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- printf "%s-migration" (include "shunter-server.fullname" .) -}}
{{- else -}}
{{- include "shunter-server.serviceAccount" . -}}
{{- end -}}
{{- end -}}

{{- define "shunter-server.bootstrapAccount" -}}
{{- if .Values.rbac.create -}}
{{- printf "%s-bootstrap" (include "shunter-server.fullname" .) -}}
{{- else -}}
{{- .Values.bootstrap.serviceAccountName -}}
{{- end -}}
{{- end -}}

{{- define "shunter-server.claim" -}}
{{- default (include "shunter-server.fullname" .) .Values.persistence.existingClaim -}}
{{- end -}}

{{/* Of a CronJob: 52 letters at the most, so that those of its Jobs fit behind it. */}}
{{- define "shunter-server.backup" -}}
{{- printf "%s-backup" (include "shunter-server.fullname" . | trunc 45 | trimSuffix "-") -}}
{{- end -}}

{{- define "shunter-server.backupClaim" -}}
{{- default (printf "%s-backups" (include "shunter-server.fullname" .)) .Values.backup.existingClaim -}}
{{- end -}}

{{- define "shunter-server.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{- printf "%s@%s" .repository .digest -}}
{{- else -}}
{{- printf "%s:%s" .repository (default $.Chart.AppVersion .tag) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* By which pods are found: they never change. Of dict "root" "component". */}}
{{- define "shunter-server.selector" -}}
app.kubernetes.io/name: {{ include "shunter-server.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Of an object. The chart's own win over others, since pods are found by them. Of dict "root" "component". */}}
{{- define "shunter-server.labels" -}}
{{- $own := include "shunter-server.selector" . | fromYaml -}}
{{- with .root -}}
{{- $_ := set $own "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-") -}}
{{- $_ := set $own "app.kubernetes.io/version" .Chart.AppVersion -}}
{{- $_ := set $own "app.kubernetes.io/part-of" "shunter" -}}
{{- $_ := set $own "app.kubernetes.io/managed-by" .Release.Service -}}
{{- merge $own .Values.commonLabels | toYaml -}}
{{- end -}}
{{- end -}}

{{/*
Of pods: without versions, so that nothing is replaced whose image stays. Of dict "root" "component", and "labels": what
they have beside those of all objects.
*/}}
{{- define "shunter-server.podLabels" -}}
{{- $own := include "shunter-server.selector" . | fromYaml -}}
{{- $_ := set $own "app.kubernetes.io/part-of" "shunter" -}}
{{- merge $own (default (dict) .labels) .root.Values.commonLabels | toYaml -}}
{{- end -}}

{{/*
Labels of an object and its annotations, if there are any. Of dict "root" "component", and "annotations": its own,
which go before those of all objects.
*/}}
{{- define "shunter-server.marks" -}}
labels:
  {{- include "shunter-server.labels" . | nindent 2 }}
{{- with merge (dict) (default (dict) .annotations) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Annotations of a hook that comes before install and upgrade. Of dict "weight" "policy". */}}
{{- define "shunter-server.hook" -}}
helm.sh/hook: pre-install,pre-upgrade
helm.sh/hook-weight: {{ .weight | quote }}
helm.sh/hook-delete-policy: {{ .policy }}
{{- end -}}
